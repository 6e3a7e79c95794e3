"""Language models that attend by the kernel: the step's numbers, and what is generated with it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import transformers
from language_models import GROUPED, model, write_folder

import sdk
from sdk.compilers.causal_lm import Step
from sdk.compilers.huggingface import resolve
from sdk.compilers.huggingface_generation import _run, generative
from sdk.compilers.kernel_attention import KERNEL, KernelAttention, KernelPass, Turn
from sdk.errors import InputError
from sdk.kernels.cmake import missing_tools
from sdk.runtimes.generation.sessions import StepSession

# Whether the kernel turns queries and keys; GPT-2 has nothing to turn.
TURNS = {"llama": True, "gpt2": False, "mistral": True, "qwen2": True, "gemma2": True}
PROMPT = "The fox jumps, the dog sleeps. The fox"


@pytest.mark.parametrize("kind", TURNS)
def test_the_step_computes_what_it_did(kind: str) -> None:
    """`generative` itself compares a tree behind 40 tokens with the model's own passes."""
    plain, made = (generative(model(kind), None, attention=a) for a in ("engine", KERNEL))
    step = made.step
    assert isinstance(step, KernelAttention)
    assert step._spares == TURNS[kind]
    assert step.layers == plain.step.layers
    for feed in (plain.inputs, *plain.checks):
        want, got = _run(plain.step, feed), _run(step, feed)
        for name, value in want.items():
            np.testing.assert_allclose(got[name], value, rtol=1e-4, atol=1e-5)


def test_segments_attend_by_it_too() -> None:
    made = generative(model("llama"), None, layers=(1, 2), attention=KERNEL)
    assert isinstance(made.step, KernelAttention)
    assert made.step._spares


def test_another_rotation_stays_in_the_graph() -> None:
    """Cohere's pairs are neighbours: the kernel gets queries and keys that are turned already."""
    config = transformers.CohereConfig(**GROUPED, vocab_size=298, bos_token_id=0, eos_token_id=1)
    torch.manual_seed(0)
    made = generative(transformers.CohereForCausalLM(config).eval(), None, attention=KERNEL)
    assert isinstance(made.step, KernelAttention)
    assert not made.step._spares


def test_rows_that_were_touched_behind_the_rotation_are_seen() -> None:
    empty = torch.zeros(1, 2, 3, 4)
    mask = torch.ones(3, 3, dtype=torch.bool)
    for touched in ("key", "query"):
        run = KernelPass(torch.arange(3)[None], mask[:, :0], mask, [])
        run.turn = Turn(empty, empty.clone(), torch.ones(1, 3, 4), torch.zeros(1, 3, 4))
        key = run.turn.key + 1 if touched == "key" else run.turn.key
        run.update(key, empty, 0)
        run.attend(empty + 1 if touched == "query" else empty, 0.5, None, None)
        assert not run.whole


def test_there_is_no_other_attention() -> None:
    with pytest.raises(InputError, match="no such attention"):
        generative(model("llama"), None, attention="fast")
    with pytest.raises(InputError, match="language models"):
        resolve(torch.nn.Linear(2, 2), None, None, attention=KERNEL)


def test_the_model_turns_as_before_behind_a_step() -> None:
    made = model("llama")
    own = transformers.models.llama.modeling_llama.apply_rotary_pos_emb
    generative(made, None, attention=KERNEL)
    assert transformers.models.llama.modeling_llama.apply_rotary_pos_emb is own
    assert type(Step(made)._pass(*(torch.zeros(0) for _ in range(3)), [])) is not KernelPass


@pytest.mark.skipif(bool(missing_tools()), reason="no compiler for the kernels")
@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_the_engine_generates_the_same_by_the_kernel(engine: str, tmp_path: Path) -> None:
    folder = write_folder("llama", tmp_path / "folder")
    texts = {}
    for attention in ("engine", KERNEL):
        artifact = sdk.compile(
            folder,
            task="text-generation",
            target=engine,
            output=tmp_path / f"{attention}.edge",
            threads=1,
            attention=attention,
        )
        used = [(k.name, k.binding) for k in artifact.manifest.kernels]
        assert used == ([("edge::tree_attention", "native")] if attention == KERNEL else [])
        if (engine, attention) == ("onnxruntime", KERNEL):
            _check_operators(artifact.path / "model.onnx")
        with sdk.load(artifact.path, threads=1) as loaded:
            texts[attention] = [
                loaded.generate(PROMPT, max_new_tokens=48, drafter=drafter).tokens
                for drafter in (None, "prompt_lookup")
            ]
            session = loaded.language.cached.session
            if attention == KERNEL:  # it skips what is not in use, so nothing has to move
                assert isinstance(session, StepSession)
                assert session._keys.size == session.capacity
    assert texts[KERNEL] == texts["engine"]


def _check_operators(file: Path) -> None:
    """One node attends in each layer, nothing is turned outside, and norms are one node each.

    In front of attention there is one product, with one view of it and one behind attention.
    """
    kinds = Counter(node.op_type for node in onnx.load(file).graph.node)
    layers = GROUPED["num_hidden_layers"]
    assert kinds["tree_attention"] == kinds["Split"] == layers
    assert kinds["SkipSimplifiedLayerNormalization"] == 2 * layers
    assert kinds["MatMul"] == 5 * layers + 1
    assert kinds["Reshape"] == 2 * layers + len(("keys", "values"))
    assert not kinds["Softmax"]
    assert not kinds["Slice"]
