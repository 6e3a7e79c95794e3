"""ONNX Runtime's own attention with the cache in place: the same tokens, trees and all."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import transformers
from coverage.architectures import liven
from language_models import GROUPED, model, tokenizer, write_folder

import sdk
from sdk.errors import GenerationError, InputError, SignatureMismatchError
from sdk.model import Model
from sdk.runtimes import open_session
from sdk.runtimes.generation.in_place import InPlaceSession, decoder
from sdk.runtimes.generation.sessions import StepSession
from sdk.runtimes.onnxruntime_decoder import FILE
from sdk.target import Target

MARKS = {"vocab_size": 298, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": None}
PROMPT = "The fox jumps, the dog sleeps. The fox"
Made = Callable[[str, str], sdk.Artifact]


def folder_of(kind: str, folder: Path) -> Path:
    """`wide` has heads of 16, which the operator can turn itself; those of `llama` have 8."""
    if kind != "wide":
        return write_folder(kind, folder)
    write_folder("llama", folder)
    network(kind).save_pretrained(folder)
    return folder


def network(kind: str) -> transformers.PreTrainedModel:
    if kind != "wide":
        return model(kind)
    torch.manual_seed(1)
    config = transformers.LlamaConfig(**GROUPED, **MARKS, head_dim=16)
    wide = transformers.LlamaForCausalLM(config).eval()
    liven(wide)
    return wide


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Artifacts by kind and precision, each compiled once."""
    found: dict[tuple[str, str], sdk.Artifact] = {}

    def get(kind: str, precision: str) -> sdk.Artifact:
        if (kind, precision) not in found:
            root = tmp_path_factory.mktemp(kind)
            found[kind, precision] = sdk.compile(
                folder_of(kind, root / "folder"),
                task="text-generation",
                target=f"onnxruntime:cpu:{precision}",
                output=root / "m.edge",
                threads=1,
                group_size=16 if precision == "int4" else None,
                waive=["slower", "fidelity"],
            )
        return found[kind, precision]

    return get


@pytest.fixture(params=["wide", "llama", "gpt2"])
def loaded(request: pytest.FixtureRequest, made: Made) -> Iterator[Model]:
    with sdk.load(made(request.param, "fp32").path, threads=1) as loaded:
        yield loaded


@pytest.fixture
def session(made: Made) -> Iterator[InPlaceSession]:
    with sdk.load(made("wide", "fp32").path, threads=1) as loaded:
        found = decoder(loaded.session)
        assert isinstance(found, InPlaceSession)
        yield found


def kinds(artifact: sdk.Artifact) -> list[str]:
    file = artifact.path / artifact.manifest.function.file
    assert file.name == FILE
    return [node.op_type for node in onnx.load(file).graph.node]


def test_the_graph_has_few_operators(made: Made) -> None:
    for precision, product in (("fp32", "MatMul"), ("int4", "MatMulNBits")):
        found = kinds(made("wide", precision))
        assert found.count("GroupQueryAttention") == 2
        assert found.count("SkipSimplifiedLayerNormalization") == 4
        assert found.count(product) == 2 * 5 + 1  # query, keys and values are one
        assert not {"Softmax", "Cos", "Concat", "Slice"} & set(found)


def test_greedy_tokens_are_those_of_transformers(
    request: pytest.FixtureRequest, loaded: Model
) -> None:
    kind = request.node.callspec.params["loaded"]
    prompt = tokenizer().encode(PROMPT).ids
    settings = transformers.GenerationConfig(
        max_new_tokens=110, do_sample=False, eos_token_id=1, pad_token_id=0
    )
    ids = torch.tensor([prompt])
    with torch.no_grad():
        wanted = network(kind).generate(
            ids, generation_config=settings, attention_mask=torch.ones_like(ids)
        )
    assert (
        list(loaded.generate(PROMPT, max_new_tokens=110).tokens)
        == wanted[0, len(prompt) :].tolist()
    )


@pytest.mark.parametrize("precision", ["fp32", "int4"])
@pytest.mark.parametrize("drafter", ["prompt_lookup", "trigram", "itself"])
def test_a_drafter_changes_no_token(made: Made, precision: str, drafter: str) -> None:
    with sdk.load(made("wide", precision).path, threads=1) as loaded:
        plain = loaded.generate(PROMPT, max_new_tokens=60)
        guess = loaded if drafter == "itself" else drafter
        drafted = loaded.generate(PROMPT, max_new_tokens=60, drafter=guess, num_draft_tokens=4)
        assert drafted.tokens == plain.tokens
        if drafter == "itself":
            assert drafted.stats.mean_accepted_tokens > 4.5


def test_each_path_of_a_tree_is_read_as_a_chain_of_its_own(loaded: Model) -> None:
    session, fresh = decoder(loaded.session), decoder(loaded.session)
    session.extend(range(20, 40))
    tokens, parents = [50, 51, 52, 53, 54], [-1, 0, 0, 1, 2]
    logits = np.array(session.forward(tokens, parents).logits)
    for path in ([0, 1, 3], [0, 2, 4]):
        fresh.rollback(0)
        fresh.extend(range(20, 40))
        chain = fresh.forward([tokens[node] for node in path]).logits
        np.testing.assert_allclose(logits[path], chain, rtol=1e-4, atol=1e-4)
    session.forward(tokens, parents)
    session.commit([0, 2, 4])
    fresh.commit(range(3))
    assert session.length == fresh.length == 23
    got, want = (np.array(s.forward([60, 61]).logits) for s in (session, fresh))
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


def test_rows_behind_the_committed_ones_are_not_read(session: InPlaceSession) -> None:
    session.extend(range(2, 112))
    session.rollback(30)
    session._rows[..., 30:, :] = np.nan
    got = np.array(session.forward([5, 6], [-1, -1]).logits)
    session.rollback(0)
    session._rows[...] = 0
    session.extend(range(2, 32))
    np.testing.assert_array_equal(got, session.forward([5, 6], [-1, -1]).logits)


def test_a_fork_goes_its_own_way(session: InPlaceSession) -> None:
    session.extend(range(2, 72))
    before = np.array(session.forward([9]).logits)
    twin = session.fork()
    twin.extend([100, 101])
    assert (session.length, twin.length) == (70, 72)
    np.testing.assert_array_equal(session.forward([9]).logits, before)


def test_the_cache_is_allocated_once(session: InPlaceSession) -> None:
    before = session._rows.ctypes.data
    session.extend([3] * session.capacity)
    session.rollback(0)
    session.extend([4] * 100)
    assert session._rows.ctypes.data == before
    with pytest.raises(GenerationError, match="no room"):
        session.extend([3] * session.capacity)
    with pytest.raises(GenerationError, match="cannot be rolled back"):
        session.rollback(101)
    with pytest.raises(GenerationError, match="no forward pass"):
        session.commit([0])


def test_a_past_with_holes_is_refused(made: Made) -> None:
    artifact = made("wide", "fp32")
    (feed, _), *_ = artifact.golden()
    with sdk.load(artifact.path, threads=1) as loaded:
        holes = feed["past_mask"].copy()
        holes[:, 0] = False
        with pytest.raises(InputError, match="cache in one piece"):
            loaded.predict({**feed, "past_mask": holes})
        width = np.ones_like(feed["new_mask"])
        assert loaded.predict({**feed, "new_mask": width}).keys() == {"logits", "keys", "values"}


def test_a_file_that_is_no_decoder_is_refused(made: Made, tmp_path: Path) -> None:
    artifact = made("wide", "fp32")
    proto = onnx.load(artifact.path / FILE)
    proto.graph.input[-1].name = "bios"
    for node in proto.graph.node:
        node.input[:] = ["bios" if name == "bias" else name for name in node.input]
    (tmp_path / FILE).write_bytes(proto.SerializeToString())
    target = Target.parse("onnxruntime")
    with pytest.raises(SignatureMismatchError, match="not those of the manifest"):
        open_session(tmp_path / FILE, artifact.manifest.function.signature, target, threads=1)


def test_windows_keep_the_portable_form(tmp_path: Path) -> None:
    folder = write_folder("mistral", tmp_path / "folder")
    artifact = sdk.compile(
        folder, task="text-generation", target="onnxruntime", output=tmp_path / "m.edge", threads=1
    )
    assert artifact.manifest.function.file == "model.onnx"
    with sdk.load(artifact.path, threads=1) as loaded:
        assert isinstance(decoder(loaded.session), StepSession)


def test_biases_and_norms_of_heads(tmp_path: Path) -> None:
    """Qwen2 adds biases to its three products, Qwen3 normalises heads before they are turned."""
    for kind, one in (("Qwen2", 11), ("Qwen3", 15)):
        torch.manual_seed(0)
        config = getattr(transformers, f"{kind}Config")(**GROUPED, **MARKS, head_dim=16)
        net = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
        for name, parameter in net.named_parameters():
            if name.endswith("bias"):
                torch.nn.init.normal_(parameter)
        artifact = sdk.compile(
            net, task="text-generation", target="onnxruntime", output=tmp_path / f"{kind}.edge",
            threads=1,
        )  # fmt: skip
        assert kinds(artifact).count("MatMul") == one
        assert artifact.manifest.kept.greedy is not None
