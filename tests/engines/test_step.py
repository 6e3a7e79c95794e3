"""The step of causal language models in PyTorch: windows, groups, and models that cannot be one."""

from __future__ import annotations

import pytest
import torch
import transformers
from language_models import WINDOW, model

from sdk.compilers.attending import attending, refuse
from sdk.compilers.causal_lm import Pass, Step
from sdk.compilers.huggingface import resolve
from sdk.compilers.huggingface_generation import generative
from sdk.errors import InputError

WINDOWS = {"llama": (None, None), "gpt2": (None,), "mistral": (WINDOW, WINDOW),
           "qwen2": (None, WINDOW), "gemma2": (WINDOW, None)}  # fmt: skip


@pytest.mark.parametrize("kind", WINDOWS)
def test_steps_compute_what_the_model_computes(kind: str) -> None:
    """`generative` compares a tree behind 40 tokens with the model's own passes."""
    made = generative(model(kind), None)
    assert tuple(layer.window for layer in made.step.layers) == WINDOWS[kind]
    assert len(made.language.continuation.tokens) == 32


@pytest.mark.parametrize("kind", ["mistral", "gemma2"])
def test_a_window_that_is_ignored_is_seen(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    step, bias = Step(model(kind)), Pass._bias
    monkeypatch.setattr(Pass, "_bias", lambda run, _, *more: bias(run, None, *more))
    with pytest.raises(InputError, match="other logits than its own"):
        generative(step.model, None)


def test_the_model_attends_as_before_behind_a_step() -> None:
    made = model("llama")
    before = made.config._attn_implementation
    ids = torch.arange(2, 12)[None]
    with torch.no_grad():
        want = made(ids).logits
        Step(made)
        assert made.config._attn_implementation == before
        torch.testing.assert_close(made(ids).logits, want)


def test_the_model_attends_as_before_behind_a_failure() -> None:
    made = model("llama")
    before = made.config._attn_implementation

    def fail(*_: object, **told: object) -> torch.Tensor:
        refuse(told, "scale")
        raise NotImplementedError("attention of any kind")

    with pytest.raises(NotImplementedError, match="any kind"), attending(made, fail):
        made(torch.arange(2, 12)[None])
    assert made.config._attn_implementation == before


def _bloom() -> transformers.PreTrainedModel:
    config = transformers.BloomConfig(vocab_size=99, hidden_size=16, n_layer=1, n_head=2)
    return transformers.BloomForCausalLM(config).eval()


def _bert() -> transformers.PreTrainedModel:
    config = transformers.BertConfig(vocab_size=99, hidden_size=16, num_hidden_layers=1,
                                     num_attention_heads=2, intermediate_size=16)  # fmt: skip
    return transformers.BertModel(config).eval()


def _mamba() -> transformers.PreTrainedModel:
    config = transformers.MambaConfig(vocab_size=99, hidden_size=16, num_hidden_layers=1)
    return transformers.MambaForCausalLM(config).eval()


@pytest.mark.parametrize("build", [_bloom, _bert, _mamba])
def test_models_that_cannot_be_a_step(build: object) -> None:
    with pytest.raises(InputError, match="cannot be compiled for generation"):
        resolve(build(), None, None, task="text-generation")  # type: ignore[operator]


def test_inputs_are_the_compilers_own() -> None:
    with pytest.raises(InputError, match="brings its own inputs"):
        resolve(model("gpt2"), {"tokens": torch.zeros(1, 1)}, None, task="text-generation")
