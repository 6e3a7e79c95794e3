"""Which operators of a Core ML file the Neural Engine cannot take, as far as is publicly known.

Core ML decides when it loads a model, and tells nobody but macOS. Apple documents two things: fp32
operators run on CPU and GPU only (coremltools guide, "Typed Execution"), and with a range of sizes
only the default ones run on the Neural Engine (an Apple engineer, Developer Forums thread 724930).
The rest is our reading of what others measured: no path for int32, for scatters and for recurrent
cells, five axes at most, no 3-D convolution (aneforge.readthedocs.io, "Capabilities" and "ANE op
catalog"; ane-guide.readthedocs.io, "Capability surface"; microsoft/onnxruntime#14212 on rank). So a
row that says `npu` says that nothing known speaks against it, and macOS has the last word.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from sdk.compilers.mil.evaluator import Block, Graph, Result, Step
from sdk.compilers.planned import Planned

MAX_RANK = 5
NO_PATH = {
    "lstm", "gru", "rnn", "reduce_prod", "scatter", "scatter_along_axis", "scatter_nd", "non_zero",
    "while_loop", "cond", "random_normal", "random_uniform",
}  # fmt: skip
FLEXIBLE = "the Neural Engine only takes the default one of a range of sizes"


def plan(graph: Graph, device: str) -> list[Planned]:
    """One row for each operator of the file, on `device` or on the CPU with the reason."""
    known = dict(graph.inputs) | dict(graph.states)
    return list(_rows(graph.block, known, device))


def _rows(block: Block, known: dict[str, Result], device: str) -> Iterator[Planned]:
    for step in block.steps:
        against = obstacle(step, known) if device == "npu" else None
        where, why = (device, "asked for") if against is None else ("cpu", against)
        yield Planned(step.name, step.kind, where, "Core ML", why, (step.name,))
        known.update((result.name, result) for result in step.results)


def obstacle(step: Step, known: Mapping[str, Result]) -> str | None:
    """Why the Neural Engine does not run an operator; None if nothing known speaks against it."""
    values = [*_operands(step, known), *step.results]
    if step.kind in NO_PATH or (step.kind == "conv" and len(step.results[0].shape) > 4):
        return f"the Neural Engine has no {step.kind}" + " in 3-D" * (step.kind == "conv")
    if any(len(value.shape) > MAX_RANK for value in values):
        return f"the Neural Engine takes at most {MAX_RANK} axes"
    if any(value.dtype == "int32" for value in values):
        return "the Neural Engine has no int32"
    if step.kind != "cast" and any(value.dtype == "fp32" for value in values):
        return "the Neural Engine computes in fp16 only"
    return FLEXIBLE if any(None in value.shape for value in values) else None


def _operands(step: Step, known: Mapping[str, Result]) -> Iterator[Result]:
    """What it reads and is not constant."""
    for names in step.reads.values():
        for name in (names,) if isinstance(names, str) else names or ():
            if name in known:
                yield known[name]
