"""Capture a rewritten graph again, with the signature of the program that it was made from."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.fx import GraphModule

from sdk.compilers.capture import eager_exported, variadic
from sdk.compilers.dims import torch_shapes, widen
from sdk.compilers.program import Feed, Program
from sdk.signature import Dim


def reexport(module: nn.Module, like: Program, feed: Feed) -> Program:
    """Capture a rewritten graph module with the signature of `like`; it is its own reference."""
    if isinstance(module, GraphModule):
        _drop_unused(module)
    signature = like.signature
    names = [spec.name for spec in signature.inputs]
    dynamic = {
        spec.name: {axis: dim for axis, dim in enumerate(spec.shape) if isinstance(dim, Dim)}
        for spec in signature.inputs
    }
    shapes: tuple[Any, ...] = tuple(torch_shapes(names, dynamic).values())
    if variadic(module):
        shapes = (shapes,)
    wide = widen({name: feed[name] for name in names}, dynamic)
    tensors = tuple(torch.from_numpy(np.ascontiguousarray(wide[name])) for name in names)
    with torch.no_grad():
        exported = torch.export.export(module, tensors, dynamic_shapes=shapes)
    output_names = [spec.name for spec in signature.outputs]
    return replace(like, exported=exported, reference=eager_exported(module, names, output_names))


def _drop_unused(graph: GraphModule) -> None:
    """Remove tensors that no node reads: torch.export would carry them along (fp32 weights)."""
    used = {str(node.target) for node in graph.graph.nodes if node.op == "get_attr"}
    named = (graph.named_parameters, graph.named_buffers)
    names = [name for tensors in named for name, _ in tensors(remove_duplicate=False)]
    for name in names:
        if name not in used:
            path, _, leaf = name.rpartition(".")
            delattr(graph.get_submodule(path), leaf)
