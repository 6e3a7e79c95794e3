"""Input channels of int8 convolutions, filled up to what ONNX Runtime's direct kernels take."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import GraphProto, NodeProto, TensorProto, helper, numpy_helper

from sdk.compilers.onnx_rewrites import Wires

MULTIPLE = 4  # int8 products are summed up four at a time


def fill_channels(file: Path) -> None:
    """Give convolutions a multiple of 4 input channels, those that are added with weights of zero.

    With three, as of a picture, ONNX Runtime copies each window out before it multiplies, which
    makes the first layer of a MobileNetV2 take twice the time.
    """
    model = onnx.load_model(file)
    wires = Wires.of(model.graph)
    for conv in [node for node in model.graph.node if node.op_type == "Conv"]:
        weight = wires.weight_of(conv)
        if weight is None or weight.dims[1] % MULTIPLE == 0 or {*weight.dims[2:]} == {1}:
            continue
        _fill(model.graph, wires, conv, weight)
    read = {name for node in model.graph.node for name in node.input} | wires.results
    for node in [node for node in model.graph.node if not read & {*node.output}]:
        model.graph.node.remove(node)
    file.write_bytes(model.SerializeToString())


def _fill(graph: GraphProto, wires: Wires, conv: NodeProto, weight: TensorProto) -> None:
    """Pad the integers before the convolution, and its weight."""
    more, rank = -weight.dims[1] % MULTIPLE, len(weight.dims)
    dequantize = wires.maker[conv.input[0]]
    integers, values = f"{conv.name}.filled", f"{conv.name}.input"
    sizes = np.zeros(2 * rank, np.int64)
    sizes[rank + 1] = more
    graph.initializer.append(numpy_helper.from_array(sizes, f"{integers}.sizes"))
    nodes = [
        helper.make_node("Pad", [dequantize.input[0], f"{integers}.sizes"], [integers], integers),
        helper.make_node("DequantizeLinear", [integers, *dequantize.input[1:]], [values], values),
    ]
    at = list(graph.node).index(conv)
    for node in reversed(nodes):
        graph.node.insert(at, node)
    conv.input[0] = values
    filled = np.pad(numpy_helper.to_array(weight), [(0, 0), (0, more)] + [(0, 0)] * (rank - 2))
    weight.CopyFrom(numpy_helper.from_array(filled, weight.name))
