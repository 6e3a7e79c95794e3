"""An ONNX graph that is read along its wires and changed in place."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import numpy as np
from onnx import GraphProto, NodeProto, TensorProto, helper, numpy_helper

from sdk.signature import Array

DOMAIN = "com.microsoft"
FLAT = ("MatMul", "MatMulNBits", "Add")
"""What makes a value whose rows lie as they were computed."""


class Graph:
    """Makers and readers of each value; `index` brings them up to date after changes."""

    def __init__(self, proto: GraphProto) -> None:
        self.proto = proto
        self.stored: dict[str, TensorProto] = {t.name: t for t in proto.initializer}
        self.index()

    def index(self) -> None:
        """Look at all nodes again."""
        self.maker: dict[str, NodeProto] = {}
        self.readers: dict[str, list[NodeProto]] = defaultdict(list)
        for node in self.proto.node:
            self.maker.update(dict.fromkeys(filter(None, node.output), node))
            for name in node.input:
                self.readers[name].append(node)
        self.results = {value.name for value in self.proto.output}

    def made_by(self, name: str, *kinds: str) -> NodeProto | None:
        """The node that makes a value, if it is of one of the kinds."""
        node = self.maker.get(name)
        return node if node is not None and node.op_type in kinds else None

    def reader(self, name: str, kind: str) -> NodeProto | None:
        """The one node that reads a value for more than its shape, if it is of this kind."""
        nodes = [node for node in self.readers[name] if node.op_type != "Shape"]
        alone = len(nodes) == 1 and name not in self.results
        return nodes[0] if alone and nodes[0].op_type == kind else None

    def up(self, name: str, *kinds: str) -> NodeProto | None:
        """Along first inputs over nodes of these kinds, in this order; the last one of them."""
        node = None
        for kind in kinds:
            node = self.made_by(name, kind)
            if node is None:
                return None
            name = node.input[0]
        return node

    def down(self, name: str, *kinds: str) -> NodeProto | None:
        """Along only readers of these kinds, in this order; the last one of them."""
        node = None
        for kind in kinds:
            node = self.reader(name, kind)
            if node is None:
                return None
            name = node.output[0]
        return node

    def constant(self, name: str) -> Array | None:
        """A stored tensor."""
        tensor = self.stored.get(name)
        return None if tensor is None else numpy_helper.to_array(tensor)

    def numbers(self, name: str) -> list[float] | None:
        """The elements of a small stored tensor."""
        array = self.constant(name)
        return None if array is None or array.size > 8 else array.reshape(-1).tolist()

    def store(self, name: str, array: Array) -> str:
        """A new stored tensor, unless one of the name is there."""
        if name not in self.stored:
            self.stored[name] = numpy_helper.from_array(np.ascontiguousarray(array), name)
            self.proto.initializer.append(self.stored[name])
        return name

    def add(
        self, kind: str, inputs: Iterable[str], outputs: Iterable[str], **attributes: Any
    ) -> NodeProto:
        """A node at the end; `sort` finds its place."""
        outputs = list(outputs)
        given = {key: value for key, value in attributes.items() if value is not None}
        name = next(filter(None, outputs))
        node = helper.make_node(kind, list(inputs), outputs, name=f"{kind}_{name}", **given)
        self.proto.node.append(node)
        return node

    def sort(self) -> None:
        """Put nodes behind what they read, and drop what no output needs."""
        order: list[NodeProto] = []
        done: set[int] = set()
        begun: set[int] = set()
        self.index()
        stack = [(name, False) for name in reversed([value.name for value in self.proto.output])]
        while stack:
            name, read = stack.pop()
            node = self.maker.get(name)
            if node is None or id(node) in done:
                continue
            if read:
                done.add(id(node))
                order.append(node)
            elif id(node) in begun:
                raise ValueError(f"{node.name} depends on itself")
            else:
                begun.add(id(node))
                stack.append((name, True))
                stack.extend((source, False) for source in reversed(node.input))
        used = {name for node in order for name in node.input} | self.results
        tensors = [tensor for tensor in self.proto.initializer if tensor.name in used]
        self._keep("node", [_copied(node) for node in order])
        self._keep("initializer", [_copied(tensor) for tensor in tensors])
        self.stored = {tensor.name: tensor for tensor in self.proto.initializer}
        self.index()

    def _keep(self, field: str, kept: list[object]) -> None:
        self.proto.ClearField(field)
        getattr(self.proto, field).extend(kept)


def attribute(node: NodeProto, name: str, default: object = None) -> object:
    """An attribute's value."""
    found = (a for a in node.attribute if a.name == name)
    return next(map(helper.get_attribute_value, found), default)


def perm(node: NodeProto) -> list[int]:
    """Of a Transpose."""
    found: list[int] = list(attribute(node, "perm", []))  # type: ignore[call-overload]
    return found


def _copied(proto: object) -> object:
    made = type(proto)()
    made.CopyFrom(proto)  # type: ignore[attr-defined]
    return made
