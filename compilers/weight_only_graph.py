"""Where a graph's linear and embedding layers keep their weights, and how integers replace them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.ao.quantization.fx._decomposed  # defines the dequantizing operator
from torch import Tensor
from torch.fx import GraphModule, Node

from sdk.compilers.program import Program, source_of
from sdk.signature import Array

aten = torch.ops.aten
DEQUANTIZE = torch.ops.quantized_decomposed.dequantize_per_channel_group.default
# operator -> which argument is the weight, and whether its rows are the inputs
LAYERS: dict[Any, tuple[int, bool]] = {
    aten.linear.default: (1, False),
    aten.embedding.default: (0, False),
    aten.mm.default: (1, True),
    aten.matmul.default: (1, True),
    aten.addmm.default: (2, True),
}
TURNS = (aten.t.default, aten.transpose.int, aten.permute.default)
ORIGIN = ("nn_module_stack", "stack_trace", "source_fn_stack")


@dataclass(frozen=True)
class Groups:
    """A matrix as integers with one scale a group: int8 `q` [N, K], fp16 or fp32 [N, K / group]."""

    q: Tensor
    scale: Tensor
    bits: int

    def __post_init__(self) -> None:
        assert self.q.shape[1] % self.scale.shape[1] == 0

    @property
    def group_size(self) -> int:
        """Numbers that share a scale."""
        return self.q.shape[1] // self.scale.shape[1]


@dataclass(frozen=True)
class Use:
    """A layer that reads a weight: by itself, or through a node that transposes it."""

    layer: Node
    reader: Node
    weight: Node


@dataclass(frozen=True)
class Weight:
    """A constant matrix and the layers that read it: several, where they are tied."""

    name: str
    """Of the attribute of the graph module."""
    matrix: Tensor
    """Output channels or entries x inputs, whichever way it is stored."""
    turned: bool
    """Stored as inputs x outputs."""
    uses: list[Use] = field(default_factory=list)

    @property
    def layers(self) -> list[str]:
        """The layers' names: their module paths."""
        return list(dict.fromkeys(_name(use.layer) for use in self.uses))


def find_weights(graph: GraphModule) -> list[Weight]:
    """The float weights of linear and embedding layers, in the order in which they are read."""
    found: dict[tuple[int, bool], Weight] = {}
    for node in graph.graph.nodes:
        use, turned = _use_of(node)
        if use is None:
            continue
        tensor = _attribute(graph, str(use.weight.target))
        if not isinstance(tensor, Tensor) or tensor.dtype != torch.float32 or tensor.dim() != 2:
            continue
        matrix = tensor.detach().t() if turned else tensor.detach()
        weight = Weight(str(use.weight.target), matrix.contiguous(), turned)
        found.setdefault((tensor.data_ptr(), turned), weight).uses.append(use)
    return list(found.values())


def _use_of(layer: Node) -> tuple[Use | None, bool]:
    """How a layer reads its constant weight: itself, or through a transposing node."""
    if layer.op != "call_function" or layer.target not in LAYERS:
        return None, False
    index, turned = LAYERS[layer.target]
    reader, weight = layer, layer.args[index]
    if turned and isinstance(weight, Node) and weight.target in TURNS:
        reader, weight, turned = weight, weight.args[0], False
    if not isinstance(weight, Node) or weight.op != "get_attr":
        return None, False
    return Use(layer, reader, weight), turned


def _name(layer: Node) -> str:
    return source_of(layer).module or layer.name


def _attribute(graph: GraphModule, name: str) -> Any:
    path, _, leaf = name.rpartition(".")
    return getattr(graph.get_submodule(path), leaf)


def store(graph: GraphModule, weight: Weight, groups: Groups) -> None:
    """Replace `weight` by `groups` for all layers that read it."""
    first = weight.uses[0]
    with graph.graph.inserting_before(first.weight):
        value = dequantized(graph, weight.name, groups, first.reader)
        value = turn(graph, value, first.reader) if weight.turned else value
    for use in weight.uses:
        use.reader.replace_input_with(use.weight, value)
    graph.graph.eliminate_dead_code()
    graph.recompile()


def dequantized(graph: GraphModule, name: str, groups: Groups, reader: Node) -> Node:
    """The node that makes floats of `groups`, kept as buffers beside the attribute `name`."""
    path, _, leaf = name.rpartition(".")
    owner = graph.get_submodule(path)
    parts = []
    for suffix, tensor in (("q", groups.q), ("scale", groups.scale)):
        owner.register_buffer(f"{leaf}_{suffix}", tensor)
        parts.append(graph.graph.get_attr(f"{name}_{suffix}"))
    if groups.scale.dtype != torch.float32:
        cast = graph.graph.call_function(aten.to.dtype, (parts[1], torch.float32))
        parts[1] = _like(cast, reader)
    limit = 1 << groups.bits - 1
    grid = (-limit, limit - 1, torch.int8, groups.group_size, torch.float32)
    return _like(graph.graph.call_function(DEQUANTIZE, (*parts, None, *grid)), reader)


def turn(graph: GraphModule, value: Node, reader: Node) -> Node:
    """The node that transposes `value`, for a layer whose weight is stored as inputs x outputs."""
    return _like(graph.graph.call_function(aten.t.default, (value,)), reader)


def _like(node: Node, reader: Node) -> Node:
    """A made node comes from where its reader does."""
    node.meta.update({key: reader.meta[key] for key in ORIGIN if key in reader.meta})
    return node


def stored_bits(program: Program) -> dict[str, int]:
    """Buffers that hold a weight's integers -> bits of one."""
    buffers = program.exported.graph_signature.inputs_to_buffers
    nodes = program.exported.graph.find_nodes(op="call_function", target=DEQUANTIZE)
    return {buffers[node.args[0].name]: (node.args[4] + 1).bit_length() for node in nodes}


def packed(values: Array, bits: int) -> Array:
    """Unsigned numbers along the last axis, 8 / bits of them in a byte, the first one lowest."""
    count = 8 // bits
    parts = values.astype(np.uint8).reshape(*values.shape[:-1], -1, count)
    shifted = parts << (np.arange(count, dtype=np.uint8) * np.uint8(bits))
    made: Array = np.bitwise_or.reduce(shifted, axis=-1)
    return made
