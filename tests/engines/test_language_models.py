"""Causal language models on engines: what transformers generates, whatever drafts and forgets."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import jsonschema
import numpy as np
import pytest
import torch
import transformers
from language_models import model, tokenizer, write_folder

import sdk
from sdk.cli import main
from sdk.errors import GenerationError, InputError, ParityError
from sdk.generating import LanguageModel, Options
from sdk.greedy import gate_greedy
from sdk.language import Continuation, Language
from sdk.model import Model
from sdk.runtimes import open_session
from sdk.runtimes.generation.sessions import PATIENCE, Steady, StepSession
from sdk.target import Target
from sdk.text import Tokenizer

KINDS, ENGINES = ("llama", "gpt2"), ("onnxruntime", "openvino")
PROMPT = "The fox jumps, the dog sleeps. The fox"
Compiled = Callable[[str], sdk.Artifact]


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    """Artifacts by kind, each compiled once."""
    made: dict[str, sdk.Artifact] = {}

    def get(kind: str) -> sdk.Artifact:
        if kind not in made:
            root = tmp_path_factory.mktemp(kind)
            folder = write_folder(kind, root / "folder")
            made[kind] = sdk.compile(
                folder,
                task="text-generation",
                target="openvino",
                output=root / "m.edge",
                threads=1,
            )
        return made[kind]

    return get


@pytest.fixture(params=[(kind, engine) for kind in KINDS for engine in ENGINES], ids=":".join)
def loaded(request: pytest.FixtureRequest, compiled: Compiled) -> Iterator[Model]:
    """The artifact on each engine: both read the same file."""
    kind, engine = request.param
    artifact = compiled(kind)
    function = artifact.manifest.function
    target = Target.parse(engine)
    session = open_session(artifact.path / function.file, function.signature, target, threads=1)
    with Model(artifact, session, target, None, note="", threads=1) as made:
        yield made


@pytest.fixture
def llama(compiled: Compiled) -> Iterator[Model]:
    with sdk.load(compiled("llama").path, threads=1) as made:
        yield made


def kind_of(loaded: Model) -> str:
    return "gpt2" if "gpt2" in loaded.artifact.manifest.provenance["source"] else "llama"


def wanted(kind: str, prompt: list[int], count: int) -> list[int]:
    """What transformers generates greedily."""
    ids = torch.tensor([prompt])
    settings = transformers.GenerationConfig(
        max_new_tokens=count, do_sample=False, eos_token_id=1, pad_token_id=0
    )
    with torch.no_grad():
        made = model(kind).generate(
            ids, generation_config=settings, attention_mask=torch.ones_like(ids)
        )
    found: list[int] = made[0, len(prompt) :].tolist()
    return found


def test_greedy_tokens_are_those_of_transformers(loaded: Model) -> None:
    prompt = tokenizer().encode(PROMPT).ids
    result = loaded.generate(PROMPT, max_new_tokens=110)  # over three sizes of the cache
    assert list(result.tokens) == wanted(kind_of(loaded), prompt, 110)
    assert result.finish_reason == ("eos" if result.tokens[-1] == 1 else "length")
    assert result.stats.prompt_tokens == len(prompt)
    assert result.lossless


@pytest.mark.parametrize("drafter", ["prompt_lookup", "trigram", "itself"])
def test_a_drafter_changes_no_token(loaded: Model, drafter: str) -> None:
    plain = loaded.generate(PROMPT, max_new_tokens=60)
    drafted = loaded.generate(
        PROMPT,
        max_new_tokens=60,
        drafter=loaded if drafter == "itself" else drafter,
        num_draft_tokens=4,
    )
    assert drafted.tokens == plain.tokens
    assert drafted.text == plain.text
    assert drafted.stats.num_drafts > 0
    if drafter == "itself":
        assert drafted.stats.acceptance_rate == 1.0
        assert drafted.stats.mean_accepted_tokens > 4.5  # all but the last round bring five


def test_sampled_tokens_depend_on_the_seed_alone(loaded: Model) -> None:
    def sampled(seed: int, drafter: str | None = None) -> tuple[int, ...]:
        return loaded.generate(
            PROMPT, max_new_tokens=40, temperature=0.9, top_p=0.95, seed=seed, drafter=drafter
        ).tokens

    assert sampled(1) == sampled(1, "prompt_lookup") == sampled(1, "trigram")
    assert sampled(1) != sampled(2)


def test_each_path_of_a_tree_is_read_as_a_chain_of_its_own(loaded: Model) -> None:
    session, fresh = (StepSession(loaded.session) for _ in range(2))
    session.extend(range(20, 40))
    tokens, parents = [50, 51, 52, 53, 54], [-1, 0, 0, 1, 2]
    logits = np.array(session.forward(tokens, parents).logits)
    for path in ([0, 1, 3], [0, 2, 4]):
        fresh.rollback(0)
        fresh.extend(range(20, 40))
        chain = fresh.forward([tokens[node] for node in path]).logits
        np.testing.assert_allclose(logits[path], chain, rtol=1e-4, atol=1e-4)
    session.forward(tokens, parents)
    session.commit([0, 2, 4])  # the rows of the other branch are not kept
    fresh.commit(range(3))
    assert session.length == fresh.length == 23
    got, want = (np.array(s.forward([60]).logits) for s in (session, fresh))
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


def test_passes_that_are_filled_up_give_the_same(
    loaded: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For engines that prepare for each change of a shape; what fills up is never committed."""
    sessions = []
    for prepares in (True, False):
        monkeypatch.setattr(loaded.session, "prepares_for_shapes", prepares, raising=False)
        sessions.append(StepSession(loaded.session))
    passes: list[tuple[list[int], list[int] | None]] = [
        ([60], None), ([5, 6, 7], None), ([9], None), ([50, 51, 52, 53, 54], [-1, 0, 0, 1, 2]),
        ([8], None), ([9, 9], [-1, -1]),
    ]  # fmt: skip
    for session in sessions:
        session.extend(range(20, 40))
    for tokens, parents in passes:
        got, want = (np.array(s.forward(tokens, parents).logits) for s in sessions)
        assert got.shape == want.shape
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)
        for session in sessions:
            session.commit([0, 2] if len(tokens) == 5 else [0])
    assert [session.length for session in sessions] == [27, 27]


def test_widths_fall_back_behind_plain_passes() -> None:
    steady = Steady()
    assert [steady.of(count) for count in (1, 3, 1, 5, 2, 9)] == [1, 4, 4, 8, 8, 16]
    plain = [steady.of(1) for _ in range(PATIENCE + 2)]
    assert plain == [16] * PATIENCE + [1] * 2
    assert steady.of(2) == 2


def test_what_is_forgotten_leaves_nothing(loaded: Model) -> None:
    session, fresh = (StepSession(loaded.session) for _ in range(2))
    session.extend(range(2, 112))
    for past in (session._keys, session._values):
        past.array[:, :, 30:110] = np.nan  # as a pass that overflowed would
    session.rollback(30)
    fresh.extend(range(2, 32))
    got, want = (np.array(s.forward([5, 6]).logits) for s in (session, fresh))
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
    assert session._keys.size == fresh._keys.size


def test_a_fork_goes_its_own_way(loaded: Model) -> None:
    session = StepSession(loaded.session)
    session.extend(range(2, 72))
    before = np.array(session.forward([9]).logits)
    twin = session.fork()
    twin.extend([100, 101])
    twin.rollback(60)
    twin.extend(range(3, 40))
    assert (session.length, twin.length) == (70, 97)
    np.testing.assert_array_equal(session.forward([9]).logits, before)


def test_the_cache_is_kept_for_what_prompts_have_in_common(llama: Model) -> None:
    first = llama.generate(PROMPT, max_new_tokens=20)
    again = llama.generate(PROMPT, max_new_tokens=20)
    assert first.tokens == again.tokens
    assert again.stats.cached_tokens == again.stats.prompt_tokens - 1


def test_a_stream_is_the_result_in_pieces(llama: Model) -> None:
    whole = llama.generate(PROMPT, max_new_tokens=50, temperature=1.0)
    stream = llama.stream(PROMPT, max_new_tokens=50, temperature=1.0, drafter="prompt_lookup")
    pieces = list(stream)
    assert len(pieces) > 10
    assert "".join(pieces) == whole.text == stream.result.text


def test_stop_strings_end_text_and_output(llama: Model) -> None:
    plain = llama.generate(PROMPT, max_new_tokens=50)
    stop = plain.text[10:13]
    stopped = llama.generate(PROMPT, max_new_tokens=50, stop=["never there", stop])
    assert stopped.text == plain.text[: plain.text.index(stop)]
    assert stopped.finish_reason == "stop"
    assert stopped.tokens == plain.tokens[: len(stopped.tokens)]


def test_a_stream_that_is_left_leaves_the_model_usable(llama: Model) -> None:
    plain = llama.generate(PROMPT, max_new_tokens=30)
    stream = llama.stream(PROMPT, max_new_tokens=30, drafter="prompt_lookup")
    pieces = iter(stream)
    next(pieces)
    with pytest.raises(GenerationError, match="share one cache"):
        llama.generate(PROMPT)
    pieces.close()  # type: ignore[attr-defined]
    assert stream.result.finish_reason == "cancelled"
    assert llama.generate(PROMPT, max_new_tokens=30).tokens == plain.tokens


def test_a_chat_is_rendered_by_the_models_template(llama: Model) -> None:
    chat = [{"role": "user", "content": "The fox?"}]
    result = llama.generate(chat, max_new_tokens=8)
    tokens = tokenizer().encode("<s>user: The fox?\n", add_special_tokens=False).ids
    assert result.tokens == llama.generate(tokens, max_new_tokens=8).tokens


@pytest.mark.parametrize(
    ("prompt", "settings", "match"),
    [
        ([], {}, "empty"),
        ([5] * 161, {}, "longer than the model's context"),
        ([5, 298], {}, "does not know"),
        ("half \ud800", {}, "not Unicode"),
        (PROMPT, {"temperature": -1}, "temperature"),
        (PROMPT, {"max_tokens": 3}, "no setting 'max_tokens'"),
        (PROMPT, {"drafter": "crystal_ball"}, "no drafter"),
        (PROMPT, {"stop": [""]}, "stop string is empty"),
    ],
)
def test_bad_requests(
    llama: Model, prompt: object, settings: dict[str, object], match: str
) -> None:
    with pytest.raises(InputError, match=match):
        llama.generate(prompt, **settings)  # type: ignore[arg-type]


def test_no_tokens_are_wanted(llama: Model) -> None:
    result = llama.generate(PROMPT, max_new_tokens=0)
    assert (result.text, result.tokens, result.finish_reason) == ("", (), "length")


def test_output_ends_where_the_context_does(llama: Model) -> None:
    result = llama.generate([5] * 155, max_new_tokens=50, eos=())
    assert (len(result.tokens), result.finish_reason) == (6, "length")


def test_a_draft_of_another_tokenizer_is_refused(llama: Model) -> None:
    language = llama.language.language
    other = Tokenizer(tokenizer(merges=39).to_str().encode(), None, {})
    draft = LanguageModel(llama.session, language, other)
    with pytest.raises(InputError, match=r"another tokenizer(.|\n)*: 297"):
        llama.language.start(PROMPT, Options(drafter=draft), {})


def test_text_needs_a_tokenizer(llama: Model) -> None:
    bare = LanguageModel(llama.session, Language((), llama.language.language.continuation), None)
    with pytest.raises(InputError, match="no tokenizer"):
        bare.start(PROMPT, Options(), {})


def test_the_gate_of_tokens_is_recorded_and_can_fail(llama: Model) -> None:
    kept = llama.artifact.manifest.kept.greedy
    assert kept is not None
    assert (kept.equal, kept.total) == (32, 32)
    right = llama.language.language.continuation
    tokens = (*right.tokens[:9], right.tokens[9] + 1, *right.tokens[10:])
    wrong = Continuation(right.prompt, tokens, (*right.margins[:9], 0.1, *right.margins[10:]))
    with pytest.raises(ParityError, match="10th"):
        gate_greedy(llama.session, wrong, strict=True)
    assert gate_greedy(llama.session, wrong, strict=False).equal == 9


def test_the_command_line_streams_and_reports(
    llama: Model, capfd: pytest.CaptureFixture[str]
) -> None:
    words = ["generate", str(llama.artifact.path), PROMPT, "--max-new-tokens", "9"]
    want = llama.generate(PROMPT, max_new_tokens=9)
    assert main(words) == 0
    shown = capfd.readouterr()
    assert (shown.out, shown.err[:8]) == (want.text + "\n", "9 tokens")
    assert main([*words, "--drafter", str(llama.artifact.path), "--json"]) == 0
    document = json.loads(capfd.readouterr().out)
    assert (document["text"], document["tokens"]) == (want.text, list(want.tokens))
    assert document["stats"]["draft_tokens_proposed"] > 0
    assert main([*words, "--chat", "--drafter", "crystal_ball"]) == 2


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
def test_weights_that_others_trained(engine: str, tmp_path: Path) -> None:
    """`EDGE_DATA` is a folder that holds `stories260k`, a Llama of 260,000 parameters."""
    folder = Path(os.environ.get("EDGE_DATA", "")) / "stories260k"
    if not (folder / "config.json").is_file():
        pytest.skip("EDGE_DATA names no folder with stories260k")
    output = tmp_path / "m.edge"
    sdk.compile(folder, task="text-generation", target=engine, output=output, threads=1)
    prompt = "Once upon a time, Tom had a red ball. Tom had a"
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder)
    ids = transformers.AutoTokenizer.from_pretrained(folder)(prompt, return_tensors="pt")
    with torch.no_grad():
        made = theirs.generate(**ids, max_new_tokens=200, do_sample=False)
    want = made[0, ids.input_ids.shape[1] :].tolist()
    with sdk.load(output, threads=1) as loaded:
        for drafter in (None, "prompt_lookup", "trigram", loaded):
            result = loaded.generate(prompt, max_new_tokens=200, drafter=drafter)
            assert list(result.tokens) == want
        assert result.stats.acceptance_rate == 1.0
        assert result.text.startswith(" ")


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("precision", ["w8", "int4"])
def test_weight_only_precisions_generate(engine: str, precision: str, tmp_path: Path) -> None:
    folder = write_folder("llama", tmp_path / "folder")
    sdk.compile(
        folder,
        task="text-generation",
        target=f"{engine}:cpu:{precision}",
        group_size=16 if precision == "int4" else None,
        output=tmp_path / "m.edge",
        waive=["slower"],
        threads=1,
    )
    with sdk.load(tmp_path / "m.edge", threads=1) as loaded:
        assert loaded.target.precision == precision
        plain = loaded.generate(PROMPT, max_new_tokens=40)
        drafted = loaded.generate(PROMPT, max_new_tokens=40, drafter=loaded, num_draft_tokens=3)
    assert drafted.tokens == plain.tokens


def test_output_under_a_schema(loaded: Model) -> None:
    """Valid, and the same tokens whatever drafts."""
    pytest.importorskip("llguidance")
    schema = {
        "type": "object",
        "properties": {
            "animal": {"enum": ["fox", "dog"]},
            "name": {"type": "string", "maxLength": 6},
            "legs": {"type": "integer", "minimum": 2, "maximum": 4},
        },
        "required": ["animal", "name", "legs"],
        "additionalProperties": False,
    }
    for temperature in (0.0, 1.0):
        found = [
            loaded.generate(
                PROMPT,
                constraint=sdk.JsonSchema(schema, whitespace=False),
                temperature=temperature,
                max_new_tokens=100,
                drafter=drafter,
            )
            for drafter in (None, "prompt_lookup", "trigram")
        ]
        assert found[0].tokens == found[1].tokens == found[2].tokens
        assert found[0].finish_reason == "eos"
        jsonschema.validate(json.loads(found[0].text), schema)
        assert found[0].stats.target_forward_passes < found[0].stats.new_tokens


def test_a_grammar_needs_a_tokenizer_and_must_compile(llama: Model) -> None:
    pytest.importorskip("llguidance")
    with pytest.raises(InputError, match="cannot be compiled"):
        llama.generate(PROMPT, constraint=sdk.JsonSchema({"uniqueItems": True}))
    mute = LanguageModel(llama.session, llama.language.language, None)
    with pytest.raises(InputError, match="no tokenizer"):
        mute.start([1, 2], Options(constraint=sdk.Regex("a")), {})
