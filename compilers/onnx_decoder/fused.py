"""A step that attends by the kernel, with the same few operators around it as one in place has."""

from __future__ import annotations

from pathlib import Path

import onnx
from onnx import NodeProto, helper

from sdk.compilers.onnx_decoder import norms, packed, views
from sdk.compilers.onnx_decoder.gathered import gather
from sdk.compilers.onnx_decoder.graph import DOMAIN, Graph

KERNEL = "tree_attention"


def fuse(file: Path) -> None:
    """Sums and norms become one operator each, the three products in front of attention become one,
    and only rows whose logits are wanted go on.
    """
    model = onnx.load(file)
    if all(node.op_type != KERNEL for node in model.graph.node):
        return
    graph = Graph(model.graph)
    norms.fuse(graph)
    gather(graph)
    views.merge(graph)
    views.stack(graph)
    for node in [node for node in model.graph.node if node.op_type == KERNEL]:
        _pack(graph, node)
    graph.sort()
    if all(entry.domain != DOMAIN for entry in model.opset_import):
        model.opset_import.append(helper.make_opsetid(DOMAIN, 1))
    file.write_bytes(model.SerializeToString())


def _pack(graph: Graph, node: NodeProto) -> None:
    """Make queries, keys and values [W, heads, D] of one product, where their widths are one."""
    rows = [graph.made_by(name, "Reshape") for name in node.input[:3]]
    shapes = [None if view is None else views.target(graph, view) for view in rows]
    heads = [shape[1] for shape in shapes if shape is not None and shape[0] == -1]
    widths = {shape[2] for shape in shapes if shape is not None and len(shape) == 3}
    if len(heads) != 3 or len(widths) != 1:
        return
    whole = packed.pack(graph, [view.input[0] for view in rows if view is not None])
    if whole is None:
        return
    shape = views.stored(graph, [-1, sum(heads), *widths])
    graph.add("Reshape", [whole, shape], [f"{whole}.rows"])
    parts = [f"{whole}.{what}" for what in ("query", "key", "value")]
    graph.add("Split", [f"{whole}.rows", views.stored(graph, heads)], parts, axis=1)
    node.input[:3] = parts
