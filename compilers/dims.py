"""Sizes that vary: from the caller's dims to torch.export's symbols, and back into a signature."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.export import ExportedProgram

from sdk.compilers.program import Feed
from sdk.errors import InputError
from sdk.signature import Array, Dim, Signature, TensorSpec

Dynamic = Mapping[str, Mapping[int, Dim]]
MAX_SIZE = 1 << 24  # where nothing bounds a size


class Proposed(dict[str, Mapping[int, Dim]]):
    """Dims that the model may turn down: a size that it fixes becomes a constant, no error."""


def check_dynamic(feed: Feed, dynamic: Dynamic) -> None:
    """Raise InputError unless the dims are axes of the example inputs, whose sizes they allow."""
    for name, axes in dynamic.items():
        if name not in feed:
            raise InputError(f"dynamic names the unknown input {name!r}.", expected=list(feed))
        for axis, dim in axes.items():
            if not 0 <= axis < feed[name].ndim or feed[name].shape[axis] not in dim:
                raise InputError(
                    f"dynamic[{name!r}][{axis}] does not fit the example input.",
                    expected=f"an axis of {list(feed[name].shape)} whose size is in {dim}",
                    got=f"axis {axis}",
                )


def torch_shapes(names: Sequence[str], dynamic: Dynamic) -> dict[str, dict[int, Any]]:
    """Input -> axis -> what torch.export makes of its dim: demanded, or at will where proposed."""
    if isinstance(dynamic, Proposed):
        dims = {d.name: torch.export.Dim.AUTO(min=d.min, max=d.max) for d in _all_dims(dynamic)}
    else:
        dims = {d.name: torch.export.Dim(d.name, min=d.min, max=d.max) for d in _all_dims(dynamic)}
    return {
        name: {axis: dims[dim.name] for axis, dim in dynamic.get(name, {}).items() if dim.max > 1}
        for name in names
    }


def _all_dims(dynamic: Dynamic) -> list[Dim]:
    return [dim for axes in dynamic.values() for dim in axes.values()]


def widen(feed: Feed, dynamic: Dynamic) -> dict[str, Array]:
    """Repeat examples of size 1 along dynamic axes: torch.export would take 1 for a constant."""
    wide = dict(feed)
    for name, axes in dynamic.items():
        for axis, dim in axes.items():
            if wide[name].shape[axis] == 1 and dim.max > 1:
                wide[name] = np.repeat(wide[name], 2, axis=axis)
    return wide


def signature_of(
    exported: ExportedProgram, names: list[str], dynamic: Dynamic, output_names: list[str]
) -> Signature:
    """Named inputs and outputs of an exported program; sizes that vary get the caller's dims."""
    placeholders = {node.name: node for node in exported.graph.nodes if node.op == "placeholder"}
    user_inputs = [placeholders[name].meta["val"] for name in exported.graph_signature.user_inputs]
    symbols = {
        str(value.shape[axis].node.expr): _within(dim, value.shape[axis], exported)
        for name, value in zip(names, user_inputs, strict=True)
        for axis, dim in dynamic.get(name, {}).items()
        if _varies(value.shape[axis])
    }
    (output,) = [node for node in exported.graph.nodes if node.op == "output"]
    results = [node.meta["val"] for node in output.args[0]]
    read = [
        _spec(name, value, symbols, exported)
        for name, value in zip(names, user_inputs, strict=True)
    ]
    made = [
        _spec(name, value, symbols, exported)
        for name, value in zip(output_names, results, strict=True)
    ]
    return Signature(tuple(read), tuple(made))


def _spec(
    name: str, value: torch.Tensor, symbols: Mapping[str, Dim], exported: ExportedProgram
) -> TensorSpec:
    shape = tuple(
        _dim(size, symbols, exported)
        if isinstance(size, torch.SymInt) and _varies(size)
        else int(size)
        for size in value.shape
    )
    return TensorSpec(name, str(value.dtype).removeprefix("torch."), shape)


def _dim(size: torch.SymInt, symbols: Mapping[str, Dim], exported: ExportedProgram) -> Dim:
    """A named dim: the caller's own, or one whose range torch.export knows."""
    text = str(size.node.expr)
    if text in symbols:
        return symbols[text]
    low, high = _bounds(size, exported)
    name = text if text.isidentifier() else f"dim_{zlib.crc32(text.encode()) % 10**6}"
    return Dim(name, low, low, high)


def _bounds(size: torch.SymInt, exported: ExportedProgram) -> tuple[int, int]:
    bounds = exported.range_constraints.get(size.node.expr)
    low = max(1, int(bounds.lower)) if bounds is not None else 1
    high = int(bounds.upper) if bounds is not None and bounds.upper.is_Integer else MAX_SIZE
    return low, max(low, min(high, MAX_SIZE))


def _varies(size: int | torch.SymInt) -> bool:
    """Whether it is a symbol; one that the model turned out to fix is a number in disguise."""
    return isinstance(size, torch.SymInt) and not size.node.expr.is_number


def without_fixed(exported: ExportedProgram, names: Sequence[str], dynamic: Dynamic) -> Dynamic:
    """Of proposed dims, those that the model let vary."""
    shapes = dict(zip(names, _input_shapes(exported), strict=True))
    return Proposed(
        {
            name: {axis: dim for axis, dim in axes.items() if _varies(shapes[name][axis])}
            for name, axes in dynamic.items()
        }
    )


def _input_shapes(exported: ExportedProgram) -> list[torch.Size]:
    nodes = {node.name: node for node in exported.graph.nodes if node.op == "placeholder"}
    return [nodes[name].meta["val"].shape for name in exported.graph_signature.user_inputs]


def _within(dim: Dim, size: torch.SymInt, exported: ExportedProgram) -> Dim:
    """The dim at the sizes that the captured program allows: torch.export may have found fewer."""
    low, high = _bounds(size, exported)
    low, high = max(dim.min, low if low > 2 else 1), min(dim.max, high)
    return Dim(dim.name, low, min(max(dim.opt or low, low), high), high)
