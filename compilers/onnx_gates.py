"""Hard sigmoids between int8 operators, folded into the numbers around them.

A hard sigmoid's slope, offset and both clips are those of a quantization grid: what a Q node of
another scale and zero point writes for its input are the integers that stand for its output. Only
engines that take Q and DQ nodes as they are can run that: one whose integers carry one grid per
tensor reads them wrong.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import GraphProto, NodeProto, TensorProto, numpy_helper

from sdk.compilers.onnx_rewrites import Wires
from sdk.compilers.onnx_swishes import spread
from sdk.signature import Array


def fold_gates(file: Path, *, swishes: bool = False) -> None:
    """Rewrite the ONNX file where gates of squeeze-and-excitation are hard sigmoids.

    They lose one of their two roundings. With `swishes`, hard swishes become integer operators too,
    for an engine that has no kernel of its own for them.
    """
    model = onnx.load_model(file)
    wires = Wires.of(model.graph)
    folds = {"HardSigmoid": _fold, "HardSwish": spread} if swishes else {"HardSigmoid": _fold}
    nodes = [node for node in model.graph.node if node.op_type in folds]
    if sum(folds[node.op_type](model.graph, wires, node) for node in nodes):
        file.write_bytes(model.SerializeToString())


def _fold(graph: GraphProto, wires: Wires, gate: NodeProto) -> bool:
    """Fold one Conv, Q, DQ, HardSigmoid, Q; the last two Q nodes become one."""
    chain = _chain(wires, gate)
    if chain is None:
        return False
    conv, inner, dequantize, quantize = chain
    scale, zero = (wires.constants.get(name) for name in quantize.input[1:])
    bias = _bias(wires, conv)
    if scale is None or zero is None or bias is None or zero.dtype != np.uint8 or zero.size != 1:
        return False
    top = (255 - float(zero)) * float(scale)
    if zero != 0 or top > 1 + float(scale) / 2:
        return False  # the grid's ends do not clip what the gate clips
    slope, offset = _slope(gate)
    point = round(offset / float(scale))
    _shift(bias, (offset / float(scale) - point) * float(scale) / slope)
    names = [f"{gate.name}.grid.scale", f"{gate.name}.grid.zero"]
    values = [np.array(float(scale) / slope, np.float32), np.array(point, np.uint8)]
    graph.initializer.extend(
        numpy_helper.from_array(np.asarray(value), name)
        for value, name in zip(values, names, strict=True)
    )
    quantize.input[:] = [conv.output[0], *names]
    for node in (inner, dequantize, gate):
        graph.node.remove(node)
    return True


def _chain(
    wires: Wires, gate: NodeProto
) -> tuple[NodeProto, NodeProto, NodeProto, NodeProto] | None:
    """Convolution, its Q and DQ, and the Q behind the gate, where nothing else reads between."""
    chain, node = [], gate
    for kind in ("DequantizeLinear", "QuantizeLinear", "Conv"):
        maker = wires.maker.get(node.input[0])
        if maker is None or maker.op_type != kind or wires.only_reader(maker) is not node:
            return None
        chain.append(maker)
        node = maker
    dequantize, inner, conv = chain
    quantize = wires.only_reader(gate)
    if quantize is None or quantize.op_type != "QuantizeLinear":
        return None
    return conv, inner, dequantize, quantize


def _bias(wires: Wires, conv: NodeProto) -> tuple[TensorProto, Array] | None:
    """The convolution's int32 bias and its scale, where it alone reads them."""
    dequantize = wires.maker.get(conv.input[2]) if len(conv.input) > 2 else None
    if dequantize is None or wires.only_reader(dequantize) is not conv:
        return None
    whole, scale = wires.stored.get(dequantize.input[0]), wires.constants.get(dequantize.input[1])
    if whole is None or scale is None or len(wires.readers[whole.name]) != 1:
        return None
    return whole, scale


def _slope(gate: NodeProto) -> tuple[float, float]:
    """Slope and offset of a HardSigmoid node."""
    given = {attribute.name: attribute.f for attribute in gate.attribute}
    return given.get("alpha", 0.2), given.get("beta", 0.5)


def _shift(bias: tuple[TensorProto, Array], by: float) -> None:
    """Add `by` to the bias, which makes up for the whole number that a zero point is."""
    whole, scale = bias
    steps = np.rint(by / scale.astype(np.float64)).astype(np.int64)
    moved = numpy_helper.to_array(whole) + steps
    limits = np.iinfo(np.int32)
    whole.raw_data = np.clip(moved, limits.min, limits.max).astype(np.int32).tobytes()
