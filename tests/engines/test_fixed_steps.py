"""Steps of fixed shapes: what NPUs run, here on QNN's simulator and, the same program, on CPUs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from coverage.architectures import liven
from engines import row
from language_models import GROUPED, model, write_folder

import sdk
from sdk.compilers import lower
from sdk.compilers.capture import capture
from sdk.compilers.fixed_steps import filled, fixed
from sdk.compilers.huggingface_generation import generative
from sdk.errors import GenerationError, InputError
from sdk.runtimes import open_session
from sdk.runtimes.generation.cached import Cached
from sdk.runtimes.generation.config import GenerationConfig
from sdk.runtimes.generation.drafters.prompt_lookup import PromptLookupDrafter
from sdk.runtimes.generation.loop import Generation
from sdk.runtimes.generation.sessions import StepSession
from sdk.target import Target

WIDTH, CONTEXT = 4, 48
TARGETS = ("onnxruntime", "openvino")


@pytest.fixture(scope="module", params=TARGETS)
def session(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> StepSession:
    """The fixed step of a small Llama, which CPUs run as well."""
    made = fixed(generative(model("llama"), None), width=WIDTH, context=CONTEXT)
    program = capture(made.step, made.inputs, made.dynamic)
    target = Target.parse("openvino")  # the portable form; both engines read it
    build = lower(program, target, tmp_path_factory.mktemp("fixed") / "build")
    on = Target.parse(request.param)
    return StepSession(open_session(build.file, program.signature, on, threads=1))


def wanted(prompt: list[int], count: int) -> list[int]:
    """What transformers generates greedily."""
    settings = transformers.GenerationConfig(
        max_new_tokens=count, do_sample=False, eos_token_id=None, pad_token_id=0
    )
    ids = torch.tensor([prompt])
    with torch.no_grad():
        made = model("llama").generate(
            ids, generation_config=settings, attention_mask=torch.ones_like(ids)
        )
    found: list[int] = made[0, len(prompt) :].tolist()
    return found


def generated(session: StepSession, prompt: list[int], count: int, draft: bool) -> Generation:
    session.rollback(0)
    made = Generation(
        Cached(session), prompt, GenerationConfig(max_new_tokens=count),
        drafter=PromptLookupDrafter() if draft else None,
    )  # fmt: skip
    for _ in made:
        pass
    return made


@pytest.mark.parametrize("draft", [False, True])
def test_tokens_are_those_of_transformers_to_the_last_row(
    session: StepSession, draft: bool
) -> None:
    for prompt in ([5], [5, 6, 7, 8, 9, 5, 6, 7, 8, 9, 5]):
        made = generated(session, prompt, CONTEXT, draft)
        count = CONTEXT + 1 - len(prompt)
        assert made.tokens == wanted(prompt, count)
        assert made.finish_reason == "length"


def test_drafts_are_as_wide_as_the_step(session: StepSession) -> None:
    assert (session.widest, session.capacity) == (WIDTH, CONTEXT)
    session.rollback(0)
    session.extend([5, 6])
    logits = np.array(session.forward([7, 8, 9, 10], [-1, 0, 0, 2]).logits)
    session.commit([0, 2, 3])
    session.rollback(2)
    np.testing.assert_allclose(
        logits[[0, 2, 3]], session.forward([7, 9, 10]).logits, rtol=1e-4, atol=1e-4
    )
    with pytest.raises(GenerationError, match="no room"):
        session.forward([1, 2, 3, 4, 5])


def test_filler_changes_nothing() -> None:
    made = generative(model("llama"), None)
    feed = filled(made.inputs, WIDTH, CONTEXT)
    got, want = (
        made.step(*(torch.from_numpy(f[name]) for name in made.step.input_names))
        for f in (feed, made.inputs)
    )
    torch.testing.assert_close(got["logits"][:1], want["logits"], rtol=1e-5, atol=1e-5)


def test_sizes_that_do_not_fit() -> None:
    made = generative(model("llama"), None)
    for width, context in ((1, 48), (40, 48)):
        with pytest.raises(InputError, match="does not fit into its context"):
            fixed(made, width=width, context=context)


def test_sizes_are_for_npus(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="language models on NPUs"):
        sdk.compile(
            write_folder("llama", tmp_path / "folder"), task="text-generation", width=4,
            target="onnxruntime", output=tmp_path / "m.edge",
        )  # fmt: skip


@pytest.mark.slow
def test_an_npu_generates(tmp_path: Path) -> None:
    """On the simulator: its tokens are those of the quantized program, most of them fp32's."""
    row("onnxruntime:npu:int8").require()
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**GROUPED, vocab_size=298, bos_token_id=0, eos_token_id=1)
    network = transformers.LlamaForCausalLM(config).eval()
    liven(network)
    sdk.compile(
        network, task="text-generation", target="onnxruntime:npu:a16w8", width=WIDTH,
        context=CONTEXT, output=tmp_path / "m.edge", threads=1, waive=["fidelity"],
    )  # fmt: skip
    with sdk.load(tmp_path / "m.edge", threads=1) as loaded:
        plain = loaded.generate([5, 6, 7, 8], max_new_tokens=6, eos=())
        drafted = loaded.generate([5, 6, 7, 8], max_new_tokens=6, eos=(), drafter="prompt_lookup",
                                  num_draft_tokens=3)  # fmt: skip
        assert plain.tokens == drafted.tokens
        assert plain.stats.new_tokens == 6
