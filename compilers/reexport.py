"""Capture a rewritten graph again, with the signature of the program that it was made from."""

from __future__ import annotations

import contextlib
import io
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.export import ExportedProgram
from torch.fx import GraphModule

from sdk.compilers.capture import CAPTURE_FAILURES, eager_exported, variadic
from sdk.compilers.dims import Proposed, torch_shapes, widen, without_fixed
from sdk.compilers.program import Feed, Program
from sdk.errors import CaptureError
from sdk.signature import Dim, Signature, TensorSpec


def reexport(module: nn.Module, like: Program, feed: Feed) -> Program:
    """Capture a rewritten graph module with the signature of `like`; it is its own reference."""
    if isinstance(module, GraphModule):
        _drop_unused(module)
    names = [spec.name for spec in like.signature.inputs]
    exported = _export(module, like.signature, feed)
    output_names = [spec.name for spec in like.signature.outputs]
    return replace(like, exported=exported, reference=eager_exported(module, names, output_names))


def _export(module: nn.Module, signature: Signature, feed: Feed) -> ExportedProgram:
    """CaptureError where the rewritten graph does not hold for all sizes of the signature."""
    names = [spec.name for spec in signature.inputs]
    dynamic = Proposed({spec.name: _varying(spec) for spec in signature.inputs})
    shapes: tuple[Any, ...] = tuple(torch_shapes(names, dynamic).values())
    if variadic(module):
        shapes = (shapes,)
    wide = widen({name: feed[name] for name in names}, dynamic)
    tensors = tuple(torch.from_numpy(np.asarray(wide[name], order="C")) for name in names)
    try:
        with torch.no_grad(), contextlib.redirect_stderr(io.StringIO()):
            exported = torch.export.export(module, tensors, dynamic_shapes=shapes)
    except CAPTURE_FAILURES as error:
        raise CaptureError(
            "The program cannot be captured at this precision.",
            got=f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}",
            fix="compile for fp32",
        ) from error
    if without_fixed(exported, names, dynamic) != dynamic:
        raise CaptureError(
            "A size that varies became fixed when the program was rewritten.",
            expected=signature.inputs,
            fix="compile with fixed sizes: dynamic={}",
        )
    return exported


def _varying(spec: TensorSpec) -> dict[int, Dim]:
    return {i: dim for i, dim in enumerate(spec.shape) if isinstance(dim, Dim) and dim.max > 1}


def _drop_unused(graph: GraphModule) -> None:
    """Remove tensors that no node reads: torch.export would carry them along (fp32 weights)."""
    used = {str(node.target) for node in graph.graph.nodes if node.op == "get_attr"}
    named = (graph.named_parameters, graph.named_buffers)
    names = [name for tensors in named for name, _ in tensors(remove_duplicate=False)]
    for name in names:
        if name not in used:
            path, _, leaf = name.rpartition(".")
            delattr(graph.get_submodule(path), leaf)
