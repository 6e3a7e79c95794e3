"""Rewrites of an ONNX graph into the forms for which engines have fast, above all int8, kernels."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import GraphProto, NodeProto, TensorProto, numpy_helper

from sdk.signature import Array

LAYERS = ("Conv", "ConvTranspose", "Gemm", "LayerNormalization")


def rewrite(graph: GraphProto) -> None:
    """All of them, in place; the values of the outputs stay as they are."""
    use_global_pool(graph)
    widen_pool(graph)
    fold_pads(graph)
    quantize_biases(graph)


def use_global_pool(graph: GraphProto) -> None:
    """ReduceMean over height and width is GlobalAveragePool, which engines run in int8."""
    constants = {value.name: value for value in graph.initializer}
    values = (*graph.value_info, *graph.input)
    ranks = {value.name: len(value.type.tensor_type.shape.dim) for value in values}
    for node in graph.node:
        if node.op_type != "ReduceMean" or len(node.input) != 2 or ranks.get(node.input[0]) != 4:
            continue
        axes = constants.get(node.input[1])
        keep = [a.i for a in node.attribute if a.name == "keepdims"] or [1]
        if axes is None or keep != [1]:
            continue
        if sorted(numpy_helper.to_array(axes).tolist()) in ([-2, -1], [2, 3]):
            node.op_type = "GlobalAveragePool"
            del node.attribute[:], node.input[1:]


def widen_pool(graph: GraphProto) -> None:
    """A mean whose window is larger than the picture is one over all of it.

    Torch cuts the window off where it rounds sizes up; OpenVINO and TensorRT refuse it.
    """
    values = (*graph.value_info, *graph.input)
    sizes = {v.name: [dim.dim_value for dim in v.type.tensor_type.shape.dim[2:]] for v in values}
    for node in graph.node:
        if node.op_type != "AveragePool":
            continue
        given = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        picture, window = sizes.get(node.input[0], []), given["kernel_shape"]
        inside = len(picture) == len(window) and all(
            0 < size <= wide for size, wide in zip(picture, window, strict=True)
        )
        if inside and given.get("ceil_mode") and not any(given.get("pads", [])):
            node.op_type = "GlobalAveragePool"
            del node.attribute[:]


def fold_pads(graph: GraphProto) -> None:
    """A pad with zeros before a convolution becomes the convolution's own, also across a Q/DQ pair.

    Torch's convolutions only pad alike on both sides, so that the TensorFlow kind of padding comes
    as a node of its own, which would run in float between two integer convolutions. Across a pair
    this is exact: zero is on every quantization grid, at its zero point.
    """
    wires = Wires.of(graph)
    for pad in [node for node in graph.node if node.op_type == "Pad"]:
        pads = wires.zero_pads(pad)
        path = wires.path_to_conv(pad)
        if pads is None or not path:
            continue
        _add_pads(path[-1], pads)
        path[0].input[0] = pad.input[0]
        graph.node.remove(pad)
        wires = Wires.of(graph)
        if len(path) == 3:
            _skip_same_scale(graph, wires, *path)
            wires = Wires.of(graph)


@dataclass(frozen=True)
class Wires:
    """Who makes and who reads each value of a graph, and its constants."""

    maker: dict[str, NodeProto]
    readers: dict[str, list[NodeProto]]
    constants: dict[str, Array]
    stored: dict[str, TensorProto]
    results: frozenset[str]

    @classmethod
    def of(cls, graph: GraphProto) -> Wires:
        readers: dict[str, list[NodeProto]] = defaultdict(list)
        for node in graph.node:
            for name in node.input:
                readers[name].append(node)
        return cls(
            maker={name: node for node in graph.node for name in node.output},
            readers=readers,
            constants={
                tensor.name: numpy_helper.to_array(tensor)
                for tensor in graph.initializer
                if len(tensor.dims) < 2
            },
            stored={tensor.name: tensor for tensor in graph.initializer},
            results=frozenset(value.name for value in graph.output),
        )

    def only_reader(self, node: NodeProto) -> NodeProto | None:
        """The one node that reads the node's one output, if nothing else does."""
        readers = self.readers[node.output[0]]
        return readers[0] if len(readers) == 1 and node.output[0] not in self.results else None

    def path_to_conv(self, pad: NodeProto) -> list[NodeProto]:
        """The nodes behind `pad` up to a convolution: it alone, or a Q/DQ pair and it."""
        path: list[NodeProto] = []
        node = self.only_reader(pad)
        for kind in ("QuantizeLinear", "DequantizeLinear", "Conv"):
            if node is None:
                return []
            if node.op_type == "Conv":
                return [*path, node] if _takes_pads(node) else []
            if node.op_type != kind:
                return []
            path.append(node)
            node = self.only_reader(node)
        return []

    def zero_pads(self, pad: NodeProto) -> list[int] | None:
        """Begins and ends over the spatial axes, where it pads those with zeros by constants."""
        mode = next((a.s for a in pad.attribute if a.name == "mode"), b"constant")
        sizes = self.constants.get(pad.input[1])
        fill = pad.input[2] if len(pad.input) > 2 else ""
        value = self.constants.get(fill, None if fill else np.zeros(()))
        axes = len(pad.input) > 3 and pad.input[3]
        if mode != b"constant" or sizes is None or value is None or value.any() or axes:
            return None
        begins, ends = np.split(sizes, 2)
        if begins[:2].any() or ends[:2].any() or (sizes < 0).any():  # type: ignore[operator]
            return None
        return [*begins[2:].tolist(), *ends[2:].tolist()]

    def product_scale(self, layer: NodeProto) -> Array | None:
        """Scale of the layer's products; None unless both factors are on a grid.

        Per output channel, where its weight has channels.
        """
        scales = []
        for name in layer.input[:2]:
            maker = self.maker.get(name)
            if maker is None or maker.op_type != "DequantizeLinear":
                return None
            scales.append(self.constants.get(maker.input[1]))
        data, weight = scales
        if data is None or weight is None or data.size != 1:
            return None
        if weight.ndim != (layer.op_type != "LayerNormalization"):
            return None
        return np.asarray(data * weight, np.float32)  # type: ignore[operator]

    def weight_of(self, conv: NodeProto) -> TensorProto | None:
        """The stored integers of an int8 convolution without groups that alone reads them."""
        if self.product_scale(conv) is None or len(self.readers[conv.input[1]]) != 1:
            return None
        name = self.maker[conv.input[1]].input[0]
        groups = next((a.i for a in conv.attribute if a.name == "group"), 1)
        return self.stored.get(name) if len(self.readers[name]) == 1 and groups == 1 else None

    def same_grid(self, a: NodeProto, b: NodeProto) -> bool:
        """Whether two Q or DQ nodes have equal constant scales and zero points."""
        return all(
            x in self.constants and y in self.constants
            and np.array_equal(self.constants[x], self.constants[y])
            for x, y in zip(a.input[1:], b.input[1:], strict=True)
        )  # fmt: skip


def _takes_pads(conv: NodeProto) -> bool:
    modes = [a.s for a in conv.attribute if a.name == "auto_pad"]
    return modes in ([], [b"NOTSET"])


def _add_pads(conv: NodeProto, pads: list[int]) -> None:
    for attribute in conv.attribute:
        if attribute.name == "pads":
            attribute.ints[:] = [a + b for a, b in zip(attribute.ints, pads, strict=True)]
            return
    conv.attribute.append(onnx.helper.make_attribute("pads", pads))


def _skip_same_scale(
    graph: GraphProto, wires: Wires, quantize: NodeProto, dequantize: NodeProto, conv: NodeProto
) -> None:
    """Drop a Q/DQ pair behind a DQ of the same grid: it changes nothing."""
    before = wires.maker.get(quantize.input[0])
    if before is None or before.op_type != "DequantizeLinear":
        return
    if len(before.input) == len(quantize.input) and wires.same_grid(before, quantize):
        conv.input[0] = before.output[0]
        graph.node.remove(quantize)
        graph.node.remove(dequantize)


def quantize_biases(graph: GraphProto) -> None:
    """The bias of an int8 layer becomes int32 at the scale of its products, input times weight.

    That is what integer kernels add, and the form that ONNX's Q/DQ convention gives it. ONNX
    Runtime would do it by itself, but the same pass of it quantizes the weights of layers that were
    left in float on purpose; with the biases done here that pass can stay off.
    """
    wires = Wires.of(graph)
    for node in [node for node in graph.node if node.op_type in LAYERS and len(node.input) > 2]:
        scale = wires.product_scale(node)
        bias = wires.constants.get(node.input[2])
        if scale is None or bias is None or bias.dtype != np.float32:
            continue
        whole = np.rint(bias.astype(np.float64) / scale.astype(np.float64))
        if np.abs(whole).max(initial=0) > np.iinfo(np.int32).max:
            continue
        name = f"{node.output[0]}.bias"
        tensors = {f"{name}.int32": whole.astype(np.int32), f"{name}.scale": scale}
        graph.initializer.extend(numpy_helper.from_array(t, key) for key, t in tensors.items())
        dequantize = onnx.helper.make_node("DequantizeLinear", list(tensors), [name], name, axis=0)
        graph.node.insert(0, dequantize)
        node.input[2] = name
