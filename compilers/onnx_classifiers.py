"""Classifiers that are 1 x 1 convolutions of one pixel, as matrix products for ONNX Runtime."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import GraphProto, NodeProto, TensorProto, helper, numpy_helper

from sdk.compilers.onnx_rewrites import Wires

RESHAPES = ("Flatten", "Reshape", "Squeeze")
Shapes = dict[str, list[int]]


def flatten_classifiers(file: Path) -> None:
    """An int8 1 x 1 convolution of one pixel whose result stays float becomes a matrix product.

    ONNX Runtime has no integer convolution with a float result and would dequantize the weights at
    each call; it has such a matrix product.
    """
    model = onnx.shape_inference.infer_shapes(onnx.load_model(file))
    graph = model.graph
    wires = Wires.of(graph)
    values = (*graph.value_info, *graph.output)
    shapes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in values}
    for conv in [node for node in graph.node if node.op_type == "Conv"]:
        weight = wires.weight_of(conv)
        if weight is not None and _is_classifier(conv, weight, wires, shapes):
            _flatten(graph, wires, shapes, conv, weight)
    del graph.value_info[:]
    file.write_bytes(model.SerializeToString())


def _is_classifier(conv: NodeProto, weight: TensorProto, wires: Wires, shapes: Shapes) -> bool:
    """Whether it is 1 x 1, sees one pixel, and no Q node alone reads it, maybe behind a clip."""
    pads = any(any(a.ints) for a in conv.attribute if a.name == "pads")
    if weight.dims[2:] != [1, 1] or shapes.get(conv.input[0], [])[2:] != [1, 1] or pads:
        return False
    reader = wires.only_reader(conv)
    if reader is not None and reader.op_type in ("Clip", "Relu"):
        reader = wires.only_reader(reader)
    return reader is None or reader.op_type != "QuantizeLinear"


def _flatten(
    graph: GraphProto, wires: Wires, shapes: Shapes, conv: NodeProto, weight: TensorProto
) -> None:
    """Drop what takes the pixel's axes off behind it, or put them on again."""
    del weight.dims[2:]
    reader = wires.only_reader(conv)
    flat = reader is not None and shapes.get(reader.output[0], [])[1:] == weight.dims[:1]
    if reader is not None and flat and reader.op_type in RESHAPES:
        conv.output[0] = reader.output[0]
        graph.node.remove(reader)
    else:
        _add_pixel(graph, conv)
    _to_matrix_product(graph, wires, conv)


def _add_pixel(graph: GraphProto, conv: NodeProto) -> None:
    """Give the result of what becomes a matrix product its two last axes again."""
    axes = numpy_helper.from_array(np.array([2, 3], np.int64), f"{conv.name}.axes")
    graph.initializer.append(axes)
    inputs, result = [f"{conv.name}.product", axes.name], conv.output[0]
    conv.output[0] = inputs[0]
    after = list(graph.node).index(conv) + 1
    graph.node.insert(after, helper.make_node("Unsqueeze", inputs, [result], axes.name))


def _to_matrix_product(graph: GraphProto, wires: Wires, conv: NodeProto) -> None:
    """Gemm of the same name in the convolution's place, behind a DQ node of the flat integers."""
    dequantize = wires.maker[conv.input[0]]
    rows, flat = f"{conv.name}.rows", f"{conv.name}.flat"
    nodes = [
        helper.make_node("Flatten", dequantize.input[:1], [rows], rows),
        helper.make_node("DequantizeLinear", [rows, *dequantize.input[1:]], [flat], flat),
    ]
    at = list(graph.node).index(conv)
    for node in reversed(nodes):
        graph.node.insert(at, node)
    if wires.only_reader(dequantize) is not None:
        graph.node.remove(dequantize)
    inputs = [flat, *conv.input[1:]]
    conv.CopyFrom(helper.make_node("Gemm", inputs, conv.output, conv.name, transB=1))
