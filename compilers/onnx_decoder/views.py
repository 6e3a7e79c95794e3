"""Reshapes, squeezes and unsqueezes in a row as one reshape: each node costs an engine a call."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from onnx import NodeProto

from sdk.compilers.onnx_decoder.graph import Graph, attribute

VIEWS = ("Reshape", "Squeeze", "Unsqueeze")


def merge(graph: Graph) -> None:
    """Give every view that it can be the shape of the last one in its row."""
    for node in [node for node in graph.proto.node if node.op_type in VIEWS[:2]]:
        before = graph.made_by(node.input[0], *VIEWS)
        shape = target(graph, node)
        if before is None or shape is None:
            continue
        node.CopyFrom(NodeProto(op_type="Reshape", name=node.name, output=node.output))
        node.input.extend([before.input[0], stored(graph, shape)])
    graph.sort()


def stack(graph: Graph) -> None:
    """Outputs that stack values lay them side by side instead, with one view of the whole."""
    for result in graph.proto.output:
        shape = [dim.dim_value or -1 for dim in result.type.tensor_type.shape.dim]
        node = graph.made_by(result.name, "Concat")
        if node is None or shape.count(-1) != 1:
            continue
        parts = [graph.made_by(name, "Unsqueeze") for name in node.input]
        axes = [None if part is None else graph.numbers(part.input[1]) for part in parts]
        if attribute(node, "axis") != 0 or any(found != [0] for found in axes):
            continue
        node.input[:] = [part.input[0] for part in parts if part is not None]
        node.output[0] = f"{result.name}.side.by.side"
        graph.add("Reshape", [node.output[0], stored(graph, shape)], [result.name])
    graph.sort()


def stored(graph: Graph, sizes: Sequence[int]) -> str:
    """The name of a stored tensor with these sizes: one for all that want the same."""
    return graph.store("sizes." + ".".join(map(str, sizes)), np.array(sizes, np.int64))


def target(graph: Graph, node: NodeProto) -> list[int] | None:
    """The shape that a view gives whatever it is given; None where that is not known."""
    if node.op_type == "Reshape":
        sizes = graph.numbers(node.input[1])
        return None if sizes is None or 0 in sizes else [int(size) for size in sizes]
    before = graph.made_by(node.input[0], "Reshape")
    axes = graph.numbers(node.input[1]) if len(node.input) > 1 else None
    shape = None if before is None else target(graph, before)
    if node.op_type != "Squeeze" or shape is None or axes is None:
        return None
    gone = {int(axis) % len(shape) for axis in axes}
    if any(shape[axis] != 1 for axis in gone):
        return None
    return [size for axis, size in enumerate(shape) if axis not in gone]
