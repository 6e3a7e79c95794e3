"""Rotary positions in front of attention (RoFormer, Su et al. 2021, eq. 34), and their angles."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper

from sdk.compilers.onnx_decoder.graph import Graph
from sdk.extras import require
from sdk.signature import Array


@dataclass(frozen=True)
class Rotation:
    """A value that is turned, in two halves, by angles that depend on the positions."""

    turned: str
    cos: str
    sin: str


def find(graph: Graph, name: str) -> Rotation | None:
    """x * cos + (-x2, x1) * sin, with x = (x1, x2) along the last axis."""
    total = graph.made_by(name, "Add")
    if total is None:
        return None
    for straight, crossed in (total.input, reversed(total.input)):
        one, two = graph.made_by(straight, "Mul"), graph.made_by(crossed, "Mul")
        if one is None or two is None:
            continue
        for swapped, sin in (two.input, reversed(two.input)):
            turned = _swapped(graph, swapped)
            if turned is not None and turned in one.input:
                (cos,) = (value for value in one.input if value != turned)
                return Rotation(turned, cos, sin)
    return None


def _swapped(graph: Graph, name: str) -> str | None:
    """x where the value is (-x2, x1)."""
    joined = graph.made_by(name, "Concat")
    if joined is None or len(joined.input) != 2:
        return None
    second, first = (
        graph.up(joined.input[0], "Neg", "Slice"),
        graph.made_by(joined.input[1], "Slice"),
    )
    if first is None or second is None or first.input[0] != second.input[0]:
        return None
    heads, tails = (_range(graph, node) for node in (first, second))
    halves = heads is not None and tails is not None and heads[0] == 0 and heads[1] == tails[0]
    return str(first.input[0]) if halves else None


def _range(graph: Graph, node: NodeProto) -> tuple[int, int] | None:
    """Start and end of a slice along the last of four axes."""
    found = [graph.numbers(name) for name in node.input[1:]]
    if len(found) != 4 or any(value is None or len(value) != 1 for value in found):
        return None
    start, end, axis, step = (int(value[0]) for value in found if value is not None)
    return (start, end) if axis in (3, -1) and step == 1 else None


def tables(
    model: onnx.ModelProto, graph: Graph, rotation: Rotation, capacity: int, width: int
) -> tuple[Array, Array] | None:
    """Cosines and sines [capacity, width / 2] of all positions, by the model's own operators.

    None where they depend on something else than the position, or where the halves differ.
    """
    names = [rotation.cos, rotation.sin]
    nodes = _ancestors(graph, names)
    needed = {name for node in nodes for name in node.input} - {"positions", ""}
    stored = [graph.stored[name] for name in needed if name in graph.stored]
    if {t.name for t in stored} | {o for n in nodes for o in n.output} < needed:
        return None
    positions = helper.make_tensor_value_info("positions", TensorProto.INT64, [1, None])
    results = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names]
    part = helper.make_model(
        helper.make_graph(nodes, "angles", [positions], results, stored),
        opset_imports=model.opset_import,
        ir_version=model.ir_version,
    )
    ort = require("onnxruntime", purpose="Compiling a language model for ONNX Runtime")
    session = ort.InferenceSession(part.SerializeToString(), providers=["CPUExecutionProvider"])
    found = session.run(names, {"positions": np.arange(capacity)[None]})
    made = [_half(array, capacity, width) for array in found]
    return None if made[0] is None or made[1] is None else (made[0], made[1])


def _half(array: Array, capacity: int, width: int) -> Array | None:
    if array.size != capacity * width:
        return None
    first, second = np.split(array.reshape(capacity, width), 2, axis=1)
    return np.ascontiguousarray(first, np.float32) if np.array_equal(first, second) else None


def _ancestors(graph: Graph, names: list[str]) -> list[NodeProto]:
    """All nodes that the values depend on, in the graph's order."""
    wanted, stack = set(), list(names)
    while stack:
        node = graph.maker.get(stack.pop())
        if node is not None and id(node) not in wanted:
            wanted.add(id(node))
            stack.extend(node.input)
    return [node for node in graph.proto.node if id(node) in wanted]
