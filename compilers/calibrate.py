"""Let observers see real inputs, once.

They only look, so what they saw does not depend on which layers will be quantized: a program is
calibrated once for each grid and set of inputs, however many mixtures are made of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch.fx import GraphModule, Node

from sdk.compilers.program import Feed, Program
from sdk.errors import QuantizationError
from sdk.extras import quiet
from sdk.signature import digest_of

with quiet("torchao"):
    from torchao.quantization.pt2e import HistogramObserver, MinMaxObserver, ObserverBase

Step = Callable[[str, int, int], None]
MASKED = 1e9  # what stands for minus infinity is further out; activations are not


def calibrate(
    prepared: GraphModule,
    program: Program,
    feeds: Sequence[Feed],
    grid: str,
    step: Step | None = None,
) -> None:
    """Run the observers of `prepared`, or give it those of the same `grid` that saw `feeds`.

    QuantizationError where a part of the model did not run.
    """
    known = program.observers.setdefault(f"{grid} {digest_of(feeds)}", {})
    watching = list(observer_nodes(prepared))
    if all(_watched(node) in known for node in watching):
        for node in watching:
            setattr(prepared, str(node.target), known[_watched(node)])
        return
    _run(prepared, program, feeds, step)
    _check_scales(prepared)
    known.update((_watched(node), prepared.get_submodule(str(node.target))) for node in watching)


def observer_nodes(graph: GraphModule) -> Iterator[Node]:
    """The nodes that observe their input."""
    for node in graph.graph.nodes:
        if node.op == "call_module" and isinstance(
            graph.get_submodule(str(node.target)), ObserverBase
        ):
            yield node


def leave_masks(graph: GraphModule) -> None:
    """Take observers off values that stand for infinity, as in the masks of attention.

    One step of a grid that reaches there is larger than any score.
    """
    for node in list(observer_nodes(graph)):
        observer = graph.get_submodule(str(node.target))
        if not isinstance(observer, (HistogramObserver, MinMaxObserver)):  # of a weight, or fp8's
            continue
        if max(observer.max_val.max(), -observer.min_val.min()) > MASKED:
            node.replace_all_uses_with(node.all_input_nodes[0])
            graph.graph.erase_node(node)
    graph.recompile()


def _watched(node: Node) -> str:
    return node.all_input_nodes[0].name


def _run(prepared: GraphModule, program: Program, feeds: Sequence[Feed], step: Step | None) -> None:
    names = [spec.name for spec in program.signature.inputs]
    with torch.no_grad():
        for index, feed in enumerate(feeds):
            prepared(*(torch.from_numpy(feed[name]) for name in names))
            if step is not None:
                step("calibrate", index + 1, len(feeds))


def _check_scales(prepared: GraphModule) -> None:
    for name, observer in prepared.named_modules():
        if isinstance(observer, (HistogramObserver, MinMaxObserver)) and not bool(
            observer.min_val <= observer.max_val
        ):
            raise QuantizationError(
                f"The observer {name} saw no values: its part of the model did not run."
            )
