"""bf16 ONNX models on an engine that has no bf16 kernels: each value computed in fp32 and rounded.

That is what hardware does: it multiplies bf16 values and adds the products up in fp32.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
from onnx import (
    AttributeProto,
    GraphProto,
    ModelProto,
    NodeProto,
    TensorProto,
    helper,
    numpy_helper,
)

BF16, FP32 = TensorProto.BFLOAT16, TensorProto.FLOAT


def emulate_bfloat16(model: ModelProto) -> ModelProto:
    """The model with bf16 values held in fp32 and rounded where they are made; others unchanged."""
    if BF16 not in _types(model.graph) | {t.data_type for t in model.graph.initializer}:
        return model
    inferred = onnx.shape_inference.infer_shapes(model)
    _widen(inferred.graph)
    return inferred


def _widen(graph: GraphProto) -> None:
    values = (*graph.value_info, *graph.output, *graph.input)
    halves = {v.name for v in values if v.type.tensor_type.elem_type == BF16}
    for tensor in graph.initializer:
        _widen_tensor(tensor)
    nodes = list(graph.node)
    del graph.node[:], graph.value_info[:]
    for node in nodes:
        graph.node.extend(_rounded(node, halves))
    for value in (*graph.input, *graph.output):
        if value.name in halves:
            value.type.tensor_type.elem_type = FP32


def _rounded(node: NodeProto, halves: set[str]) -> Iterator[NodeProto]:
    """The node in fp32, and behind each of its bf16 outputs a cast to bf16 and back."""
    for attribute in node.attribute:
        _widen_attribute(node, attribute)
    made = [(index, name) for index, name in enumerate(node.output) if name in halves]
    for index, name in made:
        node.output[index] = f"{name}.wide"
    yield node
    for _, name in made:
        yield helper.make_node("Cast", [f"{name}.wide"], [f"{name}.bf16"], to=BF16)
        yield helper.make_node("Cast", [f"{name}.bf16"], [name], to=FP32)


def _widen_attribute(node: NodeProto, attribute: AttributeProto) -> None:
    if attribute.type == AttributeProto.GRAPH:
        _widen(attribute.g)
    elif attribute.type == AttributeProto.TENSOR:
        _widen_tensor(attribute.t)
    elif node.op_type == "Cast" and attribute.name == "to" and attribute.i == BF16:
        attribute.i = FP32


def _widen_tensor(tensor: TensorProto) -> None:
    if tensor.data_type == BF16:
        wide = numpy_helper.to_array(tensor).astype(np.float32)
        tensor.CopyFrom(numpy_helper.from_array(wide, tensor.name))


def _types(graph: GraphProto) -> set[int]:
    """Types that the graph casts to: a bf16 program casts its inputs."""
    return {
        attribute.i
        for node in graph.node
        if node.op_type == "Cast"
        for attribute in node.attribute
        if attribute.name == "to"
    }
