"""A step that attends by the kernel, with the same few operators around it as one in place has."""

from __future__ import annotations

from pathlib import Path

import onnx
from onnx import helper

from sdk.compilers.onnx_decoder import norms
from sdk.compilers.onnx_decoder.gathered import gather
from sdk.compilers.onnx_decoder.graph import DOMAIN, Graph

KERNEL = "tree_attention"


def fuse(file: Path) -> None:
    """Sums and norms become one operator each, and only rows whose logits are wanted go on."""
    model = onnx.load(file)
    if all(node.op_type != KERNEL for node in model.graph.node):
        return
    graph = Graph(model.graph)
    norms.fuse(graph)
    gather(graph)
    if all(entry.domain != DOMAIN for entry in model.opset_import):
        model.opset_import.append(helper.make_opsetid(DOMAIN, 1))
    file.write_bytes(model.SerializeToString())
