"""Products of one value by several weights as one product by all of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from onnx import NodeProto, TensorProto

from sdk.compilers.onnx_decoder.graph import DOMAIN, Graph, attribute
from sdk.signature import Array

BITS = ("K", "bits", "block_size", "accuracy_level")


@dataclass(frozen=True)
class Product:
    """A product by a stored weight, and the stored bias that is added to it."""

    node: NodeProto
    bias: Array | None

    @classmethod
    def of(cls, graph: Graph, name: str) -> Product | None:
        """The one that makes `name`, if nothing else reads it."""
        if len(graph.readers[name]) > 1:
            return None
        add = graph.made_by(name, "Add")
        if add is None:
            node = graph.made_by(name, "MatMul", "MatMulNBits")
            return None if node is None else cls._checked(graph, node, None)
        for value, other in (add.input, reversed(add.input)):
            bias = graph.constant(other)
            node = graph.made_by(value, "MatMul", "MatMulNBits")
            if bias is not None and bias.ndim == 1 and node is not None:
                return cls._checked(graph, node, bias)
        return None

    @classmethod
    def _checked(cls, graph: Graph, node: NodeProto, bias: Array | None) -> Product | None:
        weights = node.input[1:]
        alone = len(weights) <= 2 and all(_stored(graph, name) is not None for name in weights)
        return cls(node, bias) if alone else None


def pack(graph: Graph, names: list[str]) -> str | None:
    """One value with those of `names`, in this order, side by side; None where they do not fit."""
    found = [Product.of(graph, name) for name in names]
    products = [product for product in found if product is not None]
    if len(products) != len(names):
        return None
    nodes = [product.node for product in products]
    same = {(n.input[0], n.op_type, *(attribute(n, key) for key in BITS)) for n in nodes}
    biased = {product.bias is None for product in products}
    if len(same) != 1 or len(biased) != 1:
        return None
    made = f"{nodes[0].output[0]}.packed"
    value = made if products[0].bias is None else f"{made}.product"
    if nodes[0].op_type == "MatMul":
        weights = [graph.constant(node.input[1]) for node in nodes]
        name = graph.store(f"{made}.weight", np.concatenate(weights, 1))  # type: ignore[arg-type]
        graph.add("MatMul", [nodes[0].input[0], name], [value])
    else:
        _pack_bits(graph, nodes, made, value)
    if products[0].bias is not None:
        biases = np.concatenate([product.bias for product in products])
        graph.add("Add", [value, graph.store(f"{made}.bias", biases)], [made])
    return made


def _stored(graph: Graph, name: str) -> Array | None:
    """A stored tensor that nothing else reads, as it is stored: it may be cast first."""
    if len(graph.readers[name]) != 1:
        return None
    cast = graph.made_by(name, "Cast")
    return graph.constant(name) if cast is None else _stored(graph, cast.input[0])


def _pack_bits(graph: Graph, nodes: list[NodeProto], made: str, value: str) -> None:
    """As above, of integers in blocks and their scales."""
    parts = []
    for index, what in ((1, "blocks"), (2, "scales")):
        arrays = [_stored(graph, node.input[index]) for node in nodes]
        name = graph.store(f"{made}.{what}", np.concatenate(arrays))  # type: ignore[arg-type]
        if graph.made_by(nodes[0].input[index], "Cast"):  # ONNX Runtime does it when it loads
            graph.add("Cast", [name], [f"{name}.float"], to=TensorProto.FLOAT)
            name = f"{name}.float"
        parts.append(name)
    given = {key: attribute(nodes[0], key) for key in BITS}
    outputs = sum(int(attribute(node, "N")) for node in nodes)  # type: ignore[call-overload]
    graph.add(
        "MatMulNBits", [nodes[0].input[0], *parts], [value], domain=DOMAIN, N=outputs, **given
    )
