"""Weight-only layers in ONNX: `DequantizeLinear` with one scale a block.

Numbers of 8 bits take a byte each, those of 4 and 2 bits half a byte (ONNX's 2-bit type is read by
ONNX Runtime alone), scales are fp16 where they fit. OpenVINO and TensorRT keep such weights
compressed; ONNX Runtime gets operators of its own (`weight_only_contrib`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from onnx import GraphProto, NodeProto, TensorProto, helper, numpy_helper
from onnxscript import opset21

from sdk.compilers.weight_only_graph import packed
from sdk.signature import Array

OPSET = 21  # the first with blocks in DequantizeLinear


def dequantize(
    q: Any, scale: Any, _zero: Any, _low: int, _high: int, _dtype: int, group_size: int, *_: Any
) -> Any:
    """The translation of a program's dequantizing operator."""
    return opset21.DequantizeLinear(q, scale, axis=1, block_size=group_size)


def pack(graph: GraphProto, bits: Mapping[str, int]) -> None:
    """Store integers of four bits and less two in a byte, and scales in fp16 where it is exact."""
    stored = {tensor.name: tensor for tensor in graph.initializer}
    blocked = [node for node in graph.node if is_blocked(node)]
    for q in {node.input[0]: stored[node.input[0]] for node in blocked}.values():
        if bits[q.name] <= 4:
            q.CopyFrom(_int4(q.name, numpy_helper.to_array(q)))
    casts = {}
    for name in dict.fromkeys(node.input[1] for node in blocked):
        if name in stored and _halve(stored[name]):
            casts[name] = f"{name}.float"
            cast = helper.make_node("Cast", [name], [casts[name]], casts[name], to=1)
            graph.node.insert(0, cast)
    for node in blocked:
        node.input[1] = casts.get(node.input[1], node.input[1])


def is_blocked(node: NodeProto) -> bool:
    """Whether the node dequantizes a weight-only layer."""
    return node.op_type == "DequantizeLinear" and attribute(node, "block_size", 0) > 0


def attribute(node: NodeProto, name: str, default: int) -> int:
    """An integer attribute of a node."""
    return next((int(a.i) for a in node.attribute if a.name == name), default)


def _int4(name: str, values: Array) -> TensorProto:
    tensor = TensorProto(name=name, data_type=TensorProto.INT4, dims=values.shape)
    tensor.raw_data = packed(np.bitwise_and(values.reshape(-1), 15), 4).tobytes()
    return tensor


def _halve(scale: TensorProto) -> bool:
    """Make fp16 of fp32 scales; engines cast them back once, when they load."""
    values = numpy_helper.to_array(scale)
    with np.errstate(over="ignore"):
        half = values.astype(np.float16)
    if values.dtype != np.float32 or not np.array_equal(half.astype(np.float32), values):
        return False
    scale.CopyFrom(numpy_helper.from_array(half, scale.name))
    return True
