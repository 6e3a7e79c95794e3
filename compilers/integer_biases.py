"""Biases of quantized layers on the grid of their products, in the program itself.

Integer kernels add an int32 bias at the scale of the products, input times weight. With the bias
rounded here PyTorch adds the same number; left as it was, one output in some hundred would come
out a step away, and through a deep network such steps add up to more than the parity gate allows.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from sdk.compilers.annotate import WEIGHTED

INT32 = torch.iinfo(torch.int32)


def round_biases(graph: GraphModule) -> None:
    """Replace, in place, each bias of its own behind a quantized input and a quantized weight."""
    for node in graph.graph.nodes:
        if node.op != "call_function" or node.target not in WEIGHTED or len(node.args) < 3:
            continue
        x, weight, bias = node.args[:3]
        if not isinstance(bias, Node) or bias.op != "get_attr" or len(bias.users) != 1:
            continue
        step = _scale(graph, x)
        steps = _scale(graph, weight)
        if step is None or steps is None:
            continue
        value = _attribute(graph, bias)
        scale = (step * steps).double()
        whole = torch.round(value.double() / scale)
        if whole.abs().max() <= INT32.max:
            _replace(graph, bias, (whole * scale).to(value.dtype))


def _scale(graph: GraphModule, node: Any) -> Tensor | None:
    """Of a dequantize node: one number, or one for each channel."""
    if not isinstance(node, Node) or ".dequantize_per_" not in str(node.target):
        return None
    scale = node.args[1]
    return _attribute(graph, scale) if isinstance(scale, Node) else torch.tensor(scale)


def _attribute(graph: GraphModule, node: Node) -> Tensor:
    owner, name = _owner(graph, node)
    value = getattr(owner, name)
    assert isinstance(value, Tensor)
    return value


def _replace(graph: GraphModule, node: Node, value: Tensor) -> None:
    """By a tensor of its own: the float program shares the old one."""
    owner, name = _owner(graph, node)
    if isinstance(getattr(owner, name), nn.Parameter):
        value = nn.Parameter(value, requires_grad=False)
    setattr(owner, name, value)


def _owner(graph: GraphModule, node: Node) -> tuple[nn.Module, str]:
    path, _, name = str(node.target).rpartition(".")
    return graph.get_submodule(path), name
