"""Encoder-decoders on engines: what transformers generates, and sources that drafts copy from."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
import transformers
from coverage.architectures import liven

import sdk
from sdk.compilers.huggingface import resolve
from sdk.compilers.huggingface_seq2seq import translating
from sdk.compilers.seq2seq import SourcePass
from sdk.errors import GenerationError, InputError
from sdk.model import Model
from sdk.runtimes.generation.drafters.source_lookup import SourceLookupDrafter

MARKS = {"vocab_size": 99, "pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0}
LAYERED = {
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "max_position_embeddings": 128,
    "bos_token_id": 2,
    "forced_eos_token_id": None,
}
SOURCE = [7, 8, 9, 10, 11, 12, 13, 7, 8, 20, 21]


def network(kind: str) -> transformers.PreTrainedModel:
    """A model with weights that depend on its kind alone."""
    torch.manual_seed(0)
    made: transformers.PreTrainedModel
    if kind == "t5":
        made = transformers.T5ForConditionalGeneration(
            transformers.T5Config(
                d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, **MARKS,
                relative_attention_num_buckets=8, relative_attention_max_distance=20,
            )
        )  # fmt: skip
    elif kind == "bart":
        made = transformers.BartForConditionalGeneration(
            transformers.BartConfig(**LAYERED, **MARKS)
        )
    else:
        made = transformers.MarianMTModel(transformers.MarianConfig(**LAYERED, **MARKS))
    liven(made)
    return made.eval()


@pytest.fixture(
    scope="module",
    params=[("t5", "onnxruntime"), ("bart", "openvino"), ("marian", "onnxruntime")],
    ids=":".join,
)
def loaded(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, Model]]:
    kind, engine = request.param
    artifact = sdk.compile(
        network(kind), task="text2text-generation", target=engine, threads=1,
        output=tmp_path_factory.mktemp(kind) / "m.edge",
    )  # fmt: skip
    with sdk.load(artifact.path, threads=1) as made:
        yield kind, made


def wanted(kind: str, source: list[int], count: int) -> list[int]:
    """What transformers generates greedily."""
    settings = transformers.GenerationConfig(
        max_new_tokens=count, do_sample=False, pad_token_id=0, eos_token_id=1,
        decoder_start_token_id=0,
    )  # fmt: skip
    ids = torch.tensor([source])
    with torch.no_grad():
        made = network(kind).generate(
            ids, generation_config=settings, attention_mask=torch.ones_like(ids)
        )
    found: list[int] = made[0, 1:].tolist()
    return found


def test_tokens_are_those_of_transformers(loaded: tuple[str, Model]) -> None:
    kind, model = loaded
    assert set(model.artifact.manifest.functions) == {"step", "encode"}
    for source in (SOURCE, SOURCE[:3], list(range(3, 60))):
        found = list(model.generate(source, max_new_tokens=70).tokens)
        assert found == wanted(kind, source, 70)


def test_drafts_change_no_token(loaded: tuple[str, Model]) -> None:
    _, model = loaded
    plain = model.generate(SOURCE, max_new_tokens=40, eos=())
    for drafter in ("source_lookup", "prompt_lookup", "trigram"):
        drafted = model.generate(
            SOURCE, max_new_tokens=40, eos=(), drafter=drafter, num_draft_tokens=4
        )
        assert drafted.tokens == plain.tokens
    told = SourceLookupDrafter([*plain.tokens])
    drafted = model.generate(SOURCE, max_new_tokens=40, eos=(), drafter=told, num_draft_tokens=4)
    assert drafted.tokens == plain.tokens
    assert drafted.stats.mean_accepted_tokens > 3


def test_sampling_is_by_the_seed_alone(loaded: tuple[str, Model]) -> None:
    _, model = loaded
    made = [
        model.generate(SOURCE, max_new_tokens=20, temperature=1.0, seed=seed, drafter=drafter)
        for seed, drafter in ((1, None), (1, SourceLookupDrafter()), (2, None))
    ]
    assert made[0].tokens == made[1].tokens != made[2].tokens


def test_one_request_at_a_time(loaded: tuple[str, Model]) -> None:
    _, model = loaded
    stream = model.stream(SOURCE, max_new_tokens=10, eos=())
    tokens = iter(stream._made)
    next(tokens)
    with pytest.raises(GenerationError, match="Two requests"):
        model.generate(SOURCE[:4], max_new_tokens=4)
    tokens.close()  # type: ignore[attr-defined]
    assert model.generate(SOURCE, max_new_tokens=4, eos=()).stats.new_tokens == 4


def test_bad_sources(loaded: tuple[str, Model]) -> None:
    _, model = loaded
    with pytest.raises(InputError, match="prompt is empty"):
        model.generate([], max_new_tokens=4)
    with pytest.raises(InputError, match="does not know"):
        model.generate([98, 99], max_new_tokens=4)


def test_positions_that_are_ignored_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    before = SourcePass.relative
    monkeypatch.setattr(SourcePass, "relative", lambda run, part: before(run, part) * 0)
    with pytest.raises(InputError, match="other logits than its own"):
        translating(network("t5"), None)


@pytest.mark.parametrize("told", ["sliding_window", "softcap"])
def test_attention_of_another_kind_is_refused(told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = SourcePass.told
    monkeypatch.setattr(SourcePass, "told", lambda *a, **more: before(*a, **{**more, told: 64}))
    with pytest.raises(InputError, match=f"attention with {told}"):
        translating(network("bart"), None)


def test_decoders_alone_are_no_encoder_decoders() -> None:
    config = transformers.GPT2Config(vocab_size=99, n_embd=16, n_layer=1, n_head=2)
    network = transformers.GPT2LMHeadModel(config).eval()
    with pytest.raises(InputError, match="cannot be compiled for generation"):
        resolve(network, None, None, task="text2text-generation")
    with pytest.raises(InputError, match="brings its own inputs"):
        resolve(network, {"tokens": np.zeros(1)}, None, task="text2text-generation")
