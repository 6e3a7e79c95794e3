"""Weight-only layers in ONNX Runtime's own operators, `MatMulNBits` and `GatherBlockQuantized`.

It fuses some spellings of the portable form when it loads, but none whose weight an embedding and a
head share, none whose rows are not whole blocks, and not the operands of a `Gemm`; what it does not
fuse runs 20 to 100 times slower, on weights taken apart at each call.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import GraphProto, NodeProto, TensorProto, helper, numpy_helper

from sdk.compilers.weight_only_graph import packed
from sdk.compilers.weight_only_onnx import attribute, is_blocked
from sdk.signature import Array

DOMAIN = "com.microsoft"
SMALLEST = 16  # its blocks are powers of two from here
# Activations go on an int8 grid, block by block, as its integer kernels want them (relative RMS
# 0.005 a layer). Level 0 keeps them in float and takes 4 times as long at 4 bits, 40 to 140 times
# at 2 and 8 bits, for which it has no kernel.
ACCURACY = 4


def use_contrib(file: Path, bits: Mapping[str, int]) -> None:
    """Rewrite the ONNX file in place; `bits` are those of a number, by initializer."""
    model = onnx.load(file)
    graph = _Graph.of(model.graph)
    for node in [node for node in model.graph.node if is_blocked(node)]:
        graph.fuse(_Layer.of(node, graph.stored, bits))
    graph.sweep()
    model.opset_import.append(helper.make_opsetid(DOMAIN, 1))
    file.write_bytes(model.SerializeToString())


@dataclass(frozen=True)
class _Layer:
    """A dequantized weight: its integers [N, K], one scale for `group` of them."""

    node: NodeProto
    q: Array
    group: int
    bits: int

    @classmethod
    def of(
        cls, node: NodeProto, stored: Mapping[str, TensorProto], bits: Mapping[str, int]
    ) -> _Layer:
        q = numpy_helper.to_array(stored[node.input[0]]).astype(np.int8)
        return cls(node, q, attribute(node, "block_size", 0), bits[node.input[0]])

    @property
    def name(self) -> str:
        """Of the integers."""
        return str(self.node.input[0])

    @property
    def scale(self) -> str:
        """The name of the scales."""
        return str(self.node.input[1])

    @property
    def block(self) -> int:
        """The block size of ONNX Runtime; a whole row, where that is the group, is filled up."""
        return max(SMALLEST, 1 << (self.group - 1).bit_length())

    def unsigned(self) -> Array:
        """The integers from 0, whose default zero point is the middle of their range."""
        return (self.q.astype(np.int16) + (1 << self.bits - 1)).astype(np.uint8)

    def blocks(self) -> Array:
        """uint8 [N, blocks, bytes of a block]."""
        rows, columns = self.q.shape
        fill = -columns % self.block
        whole = np.pad(self.unsigned(), ((0, 0), (0, fill)), constant_values=1 << self.bits - 1)
        return packed(whole.reshape(rows, -1, self.block), self.bits)

    def rows(self) -> Array:
        """uint8 [N, bytes of a row]."""
        return packed(self.unsigned(), self.bits)


@dataclass(frozen=True)
class _Graph:
    """A graph with its initializers and readers at hand."""

    proto: GraphProto
    stored: dict[str, TensorProto]
    readers: dict[str, list[NodeProto]]

    @classmethod
    def of(cls, proto: GraphProto) -> _Graph:
        readers: dict[str, list[NodeProto]] = defaultdict(list)
        for node in proto.node:
            for name in node.input:
                readers[name].append(node)
        return cls(proto, {tensor.name: tensor for tensor in proto.initializer}, readers)

    def fuse(self, layer: _Layer) -> None:
        """Give each reader of the weight the fused operator."""
        turned = [n for n in self.readers[layer.node.output[0]] if n.op_type == "Transpose"]
        products = [
            node
            for value, straight in (
                (layer.node.output[0], True),
                *((node.output[0], False) for node in turned),
            )
            for node in self.readers[value]
            if _is_product(node, value, straight=straight) and self._takes_bias(node, layer)
        ]
        for node in products:
            self._multiply(node, layer)
        for node in self.readers[layer.node.output[0]]:
            if node.op_type == "Gather" and attribute(node, "axis", 0) == 0:
                self._gather(node, layer, shared=bool(products))

    def _takes_bias(self, node: NodeProto, layer: _Layer) -> bool:
        """Whether there is no bias, or one number for each output."""
        bias = node.input[2] if len(node.input) > 2 else None
        return bias is None or (
            bias in self.stored and list(self.stored[bias].dims) == [layer.q.shape[0]]
        )

    def _multiply(self, node: NodeProto, layer: _Layer) -> None:
        name = f"{layer.name}.blocks"
        if name not in self.stored:
            self._store(name, layer.blocks())
        bias = [node.input[2]] if len(node.input) > 2 else []
        inputs = [node.input[0], name, layer.scale, *["", ""][: 2 * len(bias)], *bias]
        outputs, columns = layer.q.shape
        self._become(
            node, "MatMulNBits", inputs, K=columns, N=outputs, bits=layer.bits,
            block_size=layer.block, accuracy_level=ACCURACY,
        )  # fmt: skip

    def _gather(self, node: NodeProto, layer: _Layer, *, shared: bool) -> None:
        """From whole rows; where a product reads the same weight, from its blocks made rows."""
        name = f"{layer.name}.rows"
        if shared:
            self._unblock(layer, name)
        else:
            self._store(name, layer.rows())
        self._become(
            node, "GatherBlockQuantized", [name, node.input[1], layer.scale],
            bits=layer.bits, block_size=layer.block, gather_axis=0, quantize_axis=1,
        )  # fmt: skip

    def _unblock(self, layer: _Layer, name: str) -> None:
        """Nodes on constants, which ONNX Runtime computes once: the file has the weight once."""
        rows, columns = layer.q.shape
        self._store(f"{name}.shape", np.array([rows, -1]))
        self._store(f"{name}.start", np.array([0]))
        self._store(f"{name}.end", np.array([columns * layer.bits // 8]))
        self._store(f"{name}.axis", np.array([1]))
        whole = f"{name}.whole"
        cut = [whole, *(f"{name}.{part}" for part in ("start", "end", "axis"))]
        made = (
            helper.make_node("Reshape", [f"{layer.name}.blocks", f"{name}.shape"], [whole], whole),
            helper.make_node("Slice", cut, [name], name),
        )
        for index, node in enumerate(made):
            self.proto.node.insert(index, node)

    def _store(self, name: str, values: Array) -> None:
        self.stored[name] = numpy_helper.from_array(values, name)
        self.proto.initializer.append(self.stored[name])

    @staticmethod
    def _become(node: NodeProto, kind: str, inputs: list[str], **attributes: int) -> None:
        node.op_type, node.domain = kind, DOMAIN
        node.input[:] = inputs
        del node.attribute[:]
        node.attribute.extend(helper.make_attribute(key, v) for key, v in attributes.items())

    def sweep(self) -> None:
        """Drop what nothing reads any more."""
        used = {value.name for value in self.proto.output}
        nodes = []
        for node in reversed(self.proto.node):
            if node.op_type not in ("DequantizeLinear", "Transpose") or used & {*node.output}:
                used.update(node.input)
                nodes.append(node)
        tensors = [tensor for tensor in self.proto.initializer if tensor.name in used]
        for field, kept in (("node", reversed(nodes)), ("initializer", tensors)):
            kept = list(kept)
            self.proto.ClearField(field)
            getattr(self.proto, field).extend(kept)


def _is_product(node: NodeProto, value: str, *, straight: bool) -> bool:
    """Whether the node multiplies by a weight [N, K] read as `value`, straight or transposed."""
    if len(node.input) < 2 or node.input[1] != value or node.input[0] == value:
        return False
    if node.op_type == "MatMul":
        return not straight
    factors = [a.f for a in node.attribute if a.name in ("alpha", "beta")]
    plain = attribute(node, "transA", 0) == 0 and all(factor == 1 for factor in factors)
    return node.op_type == "Gemm" and plain and attribute(node, "transB", 0) == straight
