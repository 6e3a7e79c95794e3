"""Biases of int8 convolutions as additions of their own, for OpenVINO.

Where sizes vary and a constant is broadcast and joined to what follows, as a class token to the
patches of a picture, OpenVINO 2026.4 adds the first channel's bias to all channels of an int8
convolution. An addition that spells out the bias's axes it gets right, and fuses the same.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import GraphProto, NodeProto, helper, numpy_helper

from sdk.compilers.onnx_rewrites import Wires
from sdk.compilers.program import SourceLine
from sdk.signature import Array


def split_biases(file: Path, sources: dict[str, SourceLine]) -> None:
    """Rewrite `file`; the additions get the sources of their convolutions."""
    model = onnx.load_model(file)
    graph = model.graph
    wires = Wires.of(graph)
    for conv in [node for node in graph.node if node.op_type == "Conv" and len(node.input) > 2]:
        maker, weight = (wires.maker.get(name) for name in conv.input[:2])
        bias = _bias(wires, conv)
        if bias is None or maker is None or weight is None:
            continue
        if maker.op_type == weight.op_type == "DequantizeLinear":
            name = _split(graph, conv, bias, len(wires.stored[weight.input[0]].dims))
            if conv.name in sources:
                sources[name] = sources[conv.name]
    _drop_unread(graph)
    file.write_bytes(model.SerializeToString())


def _bias(wires: Wires, conv: NodeProto) -> Array | None:
    """In float32, also where the graph holds it as int32 and a scale."""
    maker = wires.maker.get(conv.input[2])
    if maker is None:
        return wires.constants.get(conv.input[2])
    whole, scale = (wires.constants.get(name) for name in maker.input[:2])
    if maker.op_type != "DequantizeLinear" or whole is None or scale is None:
        return None
    return np.multiply(whole, scale, dtype=np.float64).astype(np.float32)


def _split(graph: GraphProto, conv: NodeProto, bias: Array, rank: int) -> str:
    result, name = conv.output[0], f"{conv.name}.bias"
    shape = (1, -1, *[1] * (rank - 2))
    graph.initializer.append(numpy_helper.from_array(bias.reshape(shape), f"{name}.values"))
    conv.output[0] = f"{result}.product"
    del conv.input[2:]
    add = helper.make_node("Add", [conv.output[0], f"{name}.values"], [result], name)
    graph.node.insert(list(graph.node).index(conv) + 1, add)
    return name


def _drop_unread(graph: GraphProto) -> None:
    read = {name for node in graph.node for name in node.input}
    read |= {value.name for value in graph.output}
    for node in [node for node in graph.node if not read & {*node.output}]:
        graph.node.remove(node)
    read = {name for node in graph.node for name in node.input} | read
    for tensor in [t for t in graph.initializer if t.name not in read]:
        graph.initializer.remove(tensor)
