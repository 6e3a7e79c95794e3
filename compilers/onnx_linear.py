"""Weight-only layers of an ONNX Runtime file by the kernel `edge::linear_nbits`, where that pays.

A layer stays ONNX Runtime's `MatMulNBits` unless the kernel took less time for it on this machine,
in this process, for eight rows, and no more for one. The numbers are the same, in the kernel's
order; where one scale is that of a whole column, what fills its block up goes. A weight that an
embedding reads too is there once: nodes on constants, which ONNX Runtime computes when it loads,
bring it into ONNX Runtime's order.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from sdk.compilers.weight_only_contrib import ACCURACY, DOMAIN as PEER
from sdk.compilers.weight_only_onnx import attribute
from sdk.extras import require
from sdk.kernels.library import found_library
from sdk.kernels.linear_nbits.packing import TILE, pack_groups, pack_weight, step
from sdk.kernels.needs import NATIVE
from sdk.kernels.registry import spec_of
from sdk.kernels.spec import DOMAIN
from sdk.manifest import KernelUse
from sdk.signature import Array
from sdk.timing import interleave

KERNEL = "linear_nbits"
PRODUCT = "MatMulNBits"
ROWS = (1, 8)  # a plain step, and the check of a draft
COLUMNS = 4096  # more of them take as long a column
BITS = (2, 4, 8)
TIE = 1.1  # as much longer may one row take: most of it is noise, and eight rows are the gain


@dataclass(frozen=True)
class Shape:
    """What the time of a layer depends on."""

    depth: int
    columns: int
    bits: int
    block: int
    """Weights of a scale, as ONNX Runtime counts them."""

    @classmethod
    def of(cls, node: NodeProto) -> Shape:
        """Of a `MatMulNBits`."""
        return cls(*(attribute(node, name, 0) for name in ("K", "N", "bits", "block_size")))

    @property
    def group(self) -> int:
        """Weights of a scale; a block may be longer than a column is, and is filled up then."""
        return min(self.block, self.depth)

    @property
    def fits(self) -> bool:
        """Whether the kernel takes it: the last one of several groups that is filled up it does
        not.
        """
        whole = self.group % step(self.bits) == 0 and self.depth % self.group == 0
        return self.bits in BITS and whole


def use_kernel(file: Path) -> tuple[KernelUse, ...]:
    """Rewrite the file in place; gives the kernel, if a layer is one of it now."""
    library, _ = found_library()
    spec = spec_of(KERNEL)
    if library is None or library.versions.get(KERNEL, 0) < spec.version:
        return ()
    graph = _Graph(onnx.load(file))
    chosen = [node for node in graph.layers() if is_faster(Shape.of(node))]
    if not chosen:
        return ()
    for node in chosen:
        graph.take(node)
    file.write_bytes(graph.finished().SerializeToString())
    return (KernelUse(spec.name, spec.version, NATIVE),)


class _Graph:
    """A model whose products become the kernel's."""

    def __init__(self, model: ModelProto) -> None:
        self.model = model
        self.stored = {tensor.name: tensor for tensor in model.graph.initializer}
        self.casts = {n.output[0]: n.input[0] for n in model.graph.node if n.op_type == "Cast"}
        self.taken: dict[str, Shape] = {}
        """Weights that are in the kernel's order now."""

    def layers(self) -> Iterator[NodeProto]:
        """The products that the kernel can compute."""
        read = Counter(name for node in self.model.graph.node for name in node.input)
        for node in self.model.graph.node:
            if node.op_type != PRODUCT or attribute(node, "accuracy_level", 0) != ACCURACY:
                continue
            plain = not any([*node.input, "", ""][3:5])  # no zero points, no order of the inputs
            known = all(self._scale(name) in self.stored for name in node.input[1:3])
            shape = Shape.of(node)
            filled = shape.block > shape.group and read[node.input[1]] > 1  # others want all of it
            if plain and known and shape.fits and not filled:
                yield node

    def _scale(self, name: str) -> str:
        """Scales as they are stored: in fp16, where a cast follows."""
        stored: str = self.casts.get(name, name)
        return stored

    def take(self, node: NodeProto) -> None:
        """Make the node the kernel's."""
        shape, (x, weight, scale) = Shape.of(node), node.input[:3]
        bias = list(node.input[5:6])
        weight_tiles, scale_tiles = f"{weight}.tiles", f"{self._scale(scale)}.tiles"
        if weight not in self.taken:
            blocks = numpy_helper.to_array(self.stored[weight])
            self._store(
                weight_tiles, pack_weight(torch.from_numpy(unpacked(blocks, shape)), shape.bits)
            )
            self.taken[weight] = shape
        if scale_tiles not in self.stored:
            values = numpy_helper.to_array(self.stored[self._scale(scale)])
            rows = torch.from_numpy(values.reshape(shape.columns, -1).copy())
            self._store(scale_tiles, pack_groups(rows))
        node.op_type, node.domain = KERNEL, DOMAIN
        node.input[:] = [x, weight_tiles, scale_tiles, *([""] if bias else []), *bias]
        del node.attribute[:]
        given = {"columns": shape.columns, "bits": shape.bits, "group": shape.group}
        node.attribute.extend(helper.make_attribute(key, value) for key, value in given.items())

    def _store(self, name: str, values: torch.Tensor) -> None:
        self.stored[name] = numpy_helper.from_array(values.numpy(), name)
        self.model.graph.initializer.append(self.stored[name])

    def finished(self) -> ModelProto:
        """The model without what nothing reads any more."""
        graph = self.model.graph
        read = _read(graph)
        casts = [n for n in graph.node if n.op_type == "Cast" and n.output[0] not in read]
        for node in casts:
            graph.node.remove(node)
        read = _read(graph)
        back = [n for name, s in self.taken.items() if name in read for n in self._back(name, s)]
        nodes = [*back, *graph.node]
        kept = [t for t in graph.initializer if t.name in _read(graph, nodes) - {*self.taken}]
        for field, values in (("node", nodes), ("initializer", kept)):
            graph.ClearField(field)
            getattr(graph, field).extend(values)
        if all(entry.domain != DOMAIN for entry in self.model.opset_import):
            self.model.opset_import.append(helper.make_opsetid(DOMAIN, 1))
        return self.model

    def _back(self, name: str, shape: Shape) -> list[NodeProto]:
        """Nodes that make a weight in ONNX Runtime's order of the tiles."""
        made = _Nodes(self, name)
        count = 8 // shape.bits
        tiles = -(-shape.columns // TILE)
        value = made.reshaped(f"{name}.tiles", (tiles, shape.depth // 4 // count, TILE, 4))
        quads = [made.part(value, shape.bits, j) for j in range(count)]
        value = made.add("Concat", quads, axis=2)
        value = made.add("Transpose", [value], perm=[0, 3, 1, 2, 4])
        value = made.reshaped(value, (tiles * TILE, shape.depth // count, count))
        value = made.add("Slice", [value, *map(made.numbers, ([0], [shape.columns]))])
        whole = made.whole(value, shape.bits, count)
        size = (shape.columns, shape.depth // shape.group, shape.group * shape.bits // 8)
        made.reshaped(whole, size, name)
        return made.nodes


class _Nodes:
    """Nodes on constants."""

    def __init__(self, graph: _Graph, name: str) -> None:
        self.graph, self.name, self.nodes = graph, name, list[NodeProto]()
        self.count = 0

    def add(self, kind: str, inputs: list[str], output: str = "", **attributes: Any) -> str:
        """A node; gives its output."""
        output = output or self._fresh()
        self.nodes.append(helper.make_node(kind, inputs, [output], output, **attributes))
        return output

    def numbers(self, values: list[int], dtype: Any = np.int64) -> str:
        """A constant; gives its name."""
        name = self._fresh()
        self.graph._store(name, torch.from_numpy(np.array(values, dtype)))
        return name

    def _fresh(self) -> str:
        self.count += 1
        return f"{self.name}.back{self.count}"

    def reshaped(self, value: str, shape: tuple[int, ...], output: str = "") -> str:
        """`value` in another shape."""
        return self.add("Reshape", [value, self.numbers(list(shape))], output)

    def part(self, value: str, bits: int, place: int) -> str:
        """Quad `place` of each byte, with an axis 2 to join along."""
        if bits < 8:
            shift = self.numbers([bits * place], np.uint8)
            value = self.add("BitShift", [value, shift], direction="RIGHT")
            value = self.add("BitwiseAnd", [value, self.numbers([(1 << bits) - 1], np.uint8)])
        return self.add("Unsqueeze", [value, self.numbers([2])])

    def whole(self, value: str, bits: int, count: int) -> str:
        """Neighbours, along the last axis, as one byte."""
        made = ""
        for place in range(count):
            one = self.add("Slice", [value, *map(self.numbers, ([place], [place + 1], [2]))])
            shift = self.numbers([bits * place], np.uint8)
            one = self.add("BitShift", [one, shift], direction="LEFT") if place else one
            made = self.add("BitwiseOr", [made, one]) if made else one
        return made


def unpacked(blocks: Array, shape: Shape) -> Array:
    """ONNX Runtime's blocks [N, groups, bytes] -> uint8 [N, K]."""
    count = 8 // shape.bits
    shifts: Array = np.arange(count, dtype=np.uint8) * np.uint8(shape.bits)
    stored: Any = blocks.reshape(shape.columns, -1, 1)
    parts = stored >> shifts & np.uint8((1 << shape.bits) - 1)
    made: Array = np.ascontiguousarray(parts.reshape(shape.columns, -1)[:, : shape.depth])
    return made


def _read(graph: GraphProto, nodes: Any = None) -> set[str]:
    """Names that nodes, also those of inner graphs, and outputs read."""
    names = {value.name for value in graph.output}
    for node in graph.node if nodes is None else nodes:
        names.update(node.input)
        for inner in (a.g for a in node.attribute if a.HasField("g")):
            names |= _read(inner)
    return names


@cache
def is_faster(shape: Shape) -> bool:
    """Whether the kernel takes less time than ONNX Runtime's operator, and for one row no more."""
    shape = replace(shape, columns=min(shape.columns, COLUMNS))
    sessions = {name: _session(_layer(shape, ours=name == "ours")) for name in ("ours", "theirs")}
    for rows in ROWS:
        feed = {"x": np.ones((rows, shape.depth), np.float32)}
        calls = {name: partial(session.run, None, feed) for name, session in sessions.items()}
        times = interleave(calls, runs=100, warmup=5, budget=0.5)
        if times["ours"].p50 > times["theirs"].p50 * (TIE if rows == 1 else 1):
            return False
    return True


def _layer(shape: Shape, *, ours: bool) -> ModelProto:
    """A model of one layer of zeros: times do not depend on the numbers."""
    groups = shape.depth // shape.group
    tiles = -(-shape.columns // TILE)
    sizes = (
        ((tiles, 2 * shape.bits * shape.depth), (tiles, groups, TILE))
        if ours
        else ((shape.columns, groups, shape.block * shape.bits // 8), (shape.columns, groups))
    )
    weight = numpy_helper.from_array(np.zeros(sizes[0], np.uint8), "w")
    scale = numpy_helper.from_array(np.ones(sizes[1], np.float32), "s")
    given: dict[str, Any] = (
        {"columns": shape.columns, "bits": shape.bits, "group": shape.group}
        if ours
        else {
            "K": shape.depth, "N": shape.columns, "bits": shape.bits,
            "block_size": shape.block, "accuracy_level": ACCURACY,
        }
    )  # fmt: skip
    kind, domain = (KERNEL, DOMAIN) if ours else (PRODUCT, PEER)
    node = helper.make_node(kind, ["x", "w", "s"], ["y"], domain=domain, **given)
    x, y = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", size])
        for name, size in (("x", shape.depth), ("y", shape.columns))
    )
    graph = helper.make_graph([node], "layer", [x], [y], [weight, scale])
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid(domain, 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def _session(model: ModelProto) -> Any:
    ort = require("onnxruntime", purpose="timing layers")
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.add_session_config_entry("edge.threads", "1")
    library, _ = found_library()
    if library is not None:
        options.register_custom_ops_library(str(library.path))
    return ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
