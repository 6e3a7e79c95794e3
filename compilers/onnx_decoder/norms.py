"""A sum and the root-mean-square norm of it as one operator (Zhang & Sennrich 2019, eq. 4)."""

from __future__ import annotations

from dataclasses import dataclass

from onnx import NodeProto

from sdk.compilers.onnx_decoder.graph import DOMAIN, Graph


@dataclass(frozen=True)
class Norm:
    """gamma * x / sqrt(mean(x^2) + epsilon)."""

    value: str
    gamma: str
    epsilon: float
    output: str


def fuse(graph: Graph) -> None:
    """Every norm, with the sum that it is of where there is one."""
    for node in [node for node in graph.proto.node if node.op_type == "Mul"]:
        norm = _norm(graph, node)
        if norm is None:
            continue
        node.output[0] = f"{norm.output}.before"  # nothing reads it any more
        total = graph.made_by(norm.value, "Add")
        if total is None or any(value in graph.stored for value in total.input):
            graph.add(
                "SimplifiedLayerNormalization", [norm.value, norm.gamma], [norm.output],
                axis=-1, epsilon=norm.epsilon, stash_type=1,
            )  # fmt: skip
            continue
        kept = norm.value
        total.output[0] = f"{kept}.before"
        graph.add(
            "SkipSimplifiedLayerNormalization", [*total.input, norm.gamma],
            [norm.output, "", "", kept], domain=DOMAIN, epsilon=norm.epsilon,
        )  # fmt: skip
    graph.sort()


def _norm(graph: Graph, node: NodeProto) -> Norm | None:
    """The norm that ends in this product."""
    for gamma, scaled in (node.input, reversed(node.input)):
        weight, divided = graph.constant(gamma), graph.made_by(scaled, "Div")
        if weight is None or weight.ndim != 1 or divided is None:
            continue
        mean = graph.up(divided.input[1], "Sqrt", "Add")
        power = None if mean is None else graph.up(mean.input[0], "ReduceMean", "Pow")
        if mean is None or power is None or power.input[0] != divided.input[0]:
            continue
        exponent, epsilon = graph.numbers(power.input[1]), graph.numbers(mean.input[1])
        if exponent == [2] and epsilon is not None and len(epsilon) == 1:
            return Norm(divided.input[0], gamma, epsilon[0], str(node.output[0]))
    return None
