"""Hard swishes between int8 operators, as integer operators of ONNX Runtime."""

from __future__ import annotations

import numpy as np
from onnx import GraphProto, NodeProto, helper, numpy_helper

from sdk.compilers.onnx_rewrites import Wires

HALF, TOP, END = (
    128,
    255,
    3,
)  # 128 stands for a half, 255 for one, which a hard sigmoid is from 3 on
GRIDS = {
    "hardswish.table.scale": np.array(END / (TOP - HALF), np.float32),
    "hardswish.table.zero": np.array(HALF, np.uint8),
    "hardswish.gate.scale": np.array(1 / TOP, np.float32),
    "hardswish.gate.zero": np.array(0, np.uint8),
}


def spread(graph: GraphProto, wires: Wires, swish: NodeProto) -> bool:
    """One x * hardsigmoid(x): a table of 256 integers for the hard sigmoid, and a multiplication.

    ONNX Runtime has no integer kernel for the whole, and would take it through float in four steps.
    It has one for LeakyRelu, which looks each integer up. A half lies between two integers: taken
    as 128, three units of x are 128 steps below zero and 127 above it, and both clips are exact.
    """
    quantize, dequantize = wires.only_reader(swish), wires.maker.get(swish.input[0])
    if dequantize is None or dequantize.op_type != "DequantizeLinear":
        return False
    zero = wires.constants.get(dequantize.input[2]) if len(dequantize.input) > 2 else None
    if quantize is None or quantize.op_type != "QuantizeLinear":
        return False
    if zero is None or zero.dtype != np.uint8:
        return False
    table_scale, table_zero, gate_scale, gate_zero = GRIDS
    names = [f"{swish.name}.{part}" for part in ("table", "integers", "gate")]
    table, integers, gate = names
    slope = HALF / (TOP - HALF)
    nodes = [
        helper.make_node("LeakyRelu", swish.input, [table], table, alpha=slope),
        helper.make_node("QuantizeLinear", [table, table_scale, table_zero], [integers], integers),
        helper.make_node("DequantizeLinear", [integers, gate_scale, gate_zero], [gate], gate),
    ]
    _add_grids(graph)
    at = list(graph.node).index(swish)
    swish.CopyFrom(helper.make_node("Mul", [*swish.input, gate], swish.output, swish.name))
    for node in reversed(nodes):
        graph.node.insert(at, node)
    return True


def _add_grids(graph: GraphProto) -> None:
    """The scales and zero points that all of them share."""
    if not any(tensor.name in GRIDS for tensor in graph.initializer):
        tensors = (
            numpy_helper.from_array(np.asarray(value), name) for name, value in GRIDS.items()
        )
        graph.initializer.extend(tensors)
