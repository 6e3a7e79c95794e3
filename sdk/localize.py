"""Name the first operator at which a compiled program leaves its reference.

Two questions, two searches, both over the operators in the order in which they run:

- the engine computes something else than the program: short programs that end at chosen operators
  are compiled and compared with PyTorch, narrowing eight ways a round to an operator whose inputs
  are right and whose value is not;
- the quantized program computes something else than the float one: both run in PyTorch, and the
  first operator whose values leave the tolerance is named with the Q/DQ pair before it.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdk.checking import open_build
from sdk.compilers import lower
from sdk.errors import EngineError, SignatureMismatchError, UnsupportedOperatorError
from sdk.parity import TOLERANCE, Tolerance, compare
from sdk.signature import Array
from sdk.target import Target

if TYPE_CHECKING:
    from torch.fx import GraphModule, Node

    from sdk.compilers.program import Program

WAYS = 8


@dataclass(frozen=True, slots=True)
class Divergence:
    """The first operator out of tolerance, and the figures there."""

    node: str
    operator: str
    module: str
    line: str
    figures: str

    def __str__(self) -> str:
        place = f"in module {self.module!r}" if self.module else f"at node {self.node!r}"
        line = f" at {self.line}" if self.line else ""
        return f"{self.operator} {place}{line} ({self.figures})"


def engine_divergence(
    program: Program, target: Target, feed: Mapping[str, Array], folder: Path, *, threads: int
) -> Divergence | None:
    """The first operator whose value on the engine is not PyTorch's; None where each one is."""
    graph = program.exported.module(check_guards=False)
    values = _values(graph, program, feed, None)
    suspects, found, rounds = _observable(graph), None, 0
    while suspects:
        picks = suspects[:: max(1, len(suspects) // WAYS)]
        probe = _Probe(program, target, folder / f"probe-{rounds}", threads)
        errors = probe.errors(picks, values, feed)
        suspects, failing = _narrow(suspects, dict(zip(picks, errors, strict=True)))
        found, rounds = failing or found, rounds + 1
    return _describe(*found) if found else None


def _narrow(
    suspects: list[Node], errors: Mapping[Node, str]
) -> tuple[list[Node], tuple[Node, str] | None]:
    """What may still be the cause, and the first probed operator that is out of tolerance.

    What leads to a right value is right; what does not lead to a wrong one did not cause it. The
    order alone would not do: it runs through one branch of the graph after the other.
    """
    failing = next(((node, error) for node, error in errors.items() if error), None)
    if failing is not None:
        causes = _ancestors([failing[0]]) - {failing[0]}
        suspects = [node for node in suspects if node in causes]
    right = _ancestors([node for node, error in errors.items() if not error])
    return [node for node in suspects if node not in right], failing


def _ancestors(nodes: list[Node]) -> set[Node]:
    """These nodes and all that their values are computed from."""
    found, stack = set(nodes), list(nodes)
    while stack:
        new = [node for node in stack.pop().all_input_nodes if node not in found]
        found.update(new)
        stack += new
    return found


def quantization_divergence(
    quantized: Program, feed: Mapping[str, Array], tolerance: Tolerance
) -> Divergence | None:
    """The first operator at which the Q/DQ program leaves its own float arithmetic."""
    graph = quantized.exported.module(check_guards=False)
    with_pairs = _values(graph, quantized, feed, None)
    without = _values(graph, quantized, feed, ())
    for node in _observable(graph):
        got, want = with_pairs[node.name], without[node.name]
        report = compare({node.name: got}, {node.name: want}, tolerance)
        if not report.ok:
            return _describe(node, str(report.worst))
    return None


@dataclass(frozen=True)
class _Probe:
    """Compiles a program cut at some operators and compares them with PyTorch."""

    program: Program
    target: Target
    folder: Path
    threads: int

    def errors(
        self, nodes: list[Node], values: Mapping[str, Array], feed: Mapping[str, Array]
    ) -> list[str]:
        """For each node the figures if it is out of tolerance, else the empty text."""
        from sdk.compilers.cut import cut  # imports torch

        part = cut(self.program, [node.name for node in nodes], feed)
        try:
            build = lower(part, self.target, self.folder)
            session = open_build(build, part, self.target, threads=self.threads)
        except (EngineError, SignatureMismatchError, UnsupportedOperatorError) as error:
            return [str(error)] * len(nodes)
        got = session.run(feed)
        session.close()
        want = {node.name: values[node.name] for node in nodes}
        report = compare(got, want, TOLERANCE[self.program.precision])
        return ["" if output.ok else str(output) for output in report.outputs]


def _observable(graph: GraphModule) -> list[Node]:
    """Operators with one float tensor as output."""
    import torch

    return [
        node
        for node in graph.graph.nodes
        if node.op == "call_function"
        and node.target is not operator.getitem
        and isinstance(node.meta.get("val"), torch.Tensor)
        and node.meta["val"].is_floating_point()
    ]


def _values(
    graph: GraphModule,
    program: Program,
    feed: Mapping[str, Array],
    active: tuple[str, ...] | None,
) -> dict[str, Array]:
    """Each operator's value in PyTorch; with `active=()` no Q/DQ pair quantizes."""
    import torch

    from sdk.compilers.quantize import SwitchableQdq

    seen: dict[str, Array] = {}

    class Recorder(SwitchableQdq):
        def run_node(self, n: Node) -> Any:
            value = super().run_node(n)
            if isinstance(value, torch.Tensor) and value.is_floating_point():
                seen[n.name] = value.float().numpy().copy()
            return value

    with torch.no_grad():
        Recorder(graph, active).run(
            *(torch.from_numpy(feed[spec.name]) for spec in program.signature.inputs)
        )
    return seen


def _describe(node: Node, figures: str) -> Divergence:
    from sdk.compilers.program import source_of

    source = source_of(node)
    if not source.line:  # a Q/DQ pair has no line of its own: name the operator around it
        near = [source_of(n) for n in (*node.all_input_nodes, *node.users) if n.op != "output"]
        source_near = next((s for s in near if s.line), source)
        return Divergence(node.name, source.operator, source_near.module, source_near.line, figures)
    return Divergence(node.name, source.operator, source.module, source.line, figures)
