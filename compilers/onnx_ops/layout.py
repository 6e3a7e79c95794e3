"""ONNX operators that move data and change no value, in plain torch.

Source: the formulas at https://onnx.ai/onnx/operators, opsets 7 to 24. Shapes, axes and
sizes arrive as attributes or as host arrays (see values.py); a tensor in their place raises
UnsupportedOperatorError.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sdk.compilers.onnx_ops.values import (
    DTYPES,
    Host,
    Rule,
    Size,
    as_tensor,
    axis_of,
    number,
    numbers,
    sym_max,
    symbolic,
)
from sdk.errors import UnsupportedOperatorError


def reshape(x: Tensor, shape: Any, *, allowzero: int = 0) -> Tensor:
    """0 copies the size of x (unless allowzero), -1 takes what is left."""
    sizes = numbers(shape)
    copied = [not allowzero and not symbolic(size) and size == 0 for size in sizes]
    return x.reshape([x.shape[i] if copy else sizes[i] for i, copy in enumerate(copied)])


def transpose(x: Tensor, *, perm: list[int] | None = None) -> Tensor:
    """Axes permuted; reversed where no permutation is given."""
    return x.permute(perm if perm is not None else list(range(x.dim()))[::-1])


def squeeze(x: Tensor, axes: Any = None) -> Tensor:
    """Without the named axes of size 1, or without all."""
    return torch.squeeze(x) if axes is None else torch.squeeze(x, tuple(numbers(axes)))


def unsqueeze(x: Tensor, axes: Any) -> Tensor:
    """New axes of size 1 at these positions of the output."""
    named = numbers(axes)
    for axis in sorted(axis_of(a, x.dim() + len(named)) for a in named):
        x = torch.unsqueeze(x, axis)
    return x


def expand(x: Tensor, shape: Any) -> Tensor:
    """Broadcast both ways: a target of 1 keeps the size of x."""
    target = numbers(shape)
    missing = len(target) - x.dim()
    own = [1] * missing + list(x.shape)
    target = [1] * -missing + target
    sizes = [n if not symbolic(t) and t == 1 else t for n, t in zip(own, target, strict=True)]
    return x.expand(sizes)


def tile(x: Tensor, repeats: Any) -> Tensor:
    """x repeated along each axis."""
    return x.repeat(numbers(repeats))


def concat(*parts: Tensor, axis: int) -> Tensor:
    """Parts joined along one axis."""
    return torch.cat(parts, axis)


def split(x: Tensor, split: Any = None, *, axis: int = 0, num_outputs: int) -> tuple[Tensor, ...]:
    """Parts of the named sizes, or equal parts of which the last may be smaller."""
    if split is not None:
        return torch.split(x, numbers(split), axis)
    chunk: Size = (x.shape[axis] + num_outputs - 1) // num_outputs
    last = x.shape[axis] - chunk * (num_outputs - 1)
    return torch.split(x, [*[chunk] * (num_outputs - 1), last], axis)


def _slice_axis(x: Tensor, axis: int, start: Size, end: Size, step: int) -> Tensor:
    """One axis of Slice; torch has no negative steps, so those become a flip or a gather."""
    size = x.shape[axis]
    if step > 0:
        cut = (slice(None),) * axis_of(axis, x.dim())
        stop = None if not symbolic(end) and end >= 2**31 - 1 else end
        return x[(*cut, slice(start, stop, step))]
    whole = start in (-1, 2**63 - 1, 2**31 - 1) and end < -(2**30)
    if whole and step == -1:
        return torch.flip(x, [axis])
    if symbolic(size):
        raise UnsupportedOperatorError(
            f"Slice with step {step} on axis {axis}, whose size is dynamic.",
            expected="a positive step, a whole reversal, or a fixed size",
            fix="export the model with that size fixed",
        )
    last = None if end < -size else end
    indices = list(range(*slice(start, last, step).indices(size)))
    return torch.index_select(x, axis, torch.tensor(indices, dtype=torch.int64, device=x.device))


def slice_(x: Tensor, starts: Any, ends: Any, axes: Any = None, steps: Any = None) -> Tensor:
    """start:end:step along the named axes, clamped to the size."""
    begin, end = numbers(starts), numbers(ends)
    dims = range(len(begin)) if axes is None else numbers(axes)
    strides = [1] * len(begin) if steps is None else numbers(steps)
    for dim, first, last, step in zip(dims, begin, end, strides, strict=True):
        x = _slice_axis(x, dim, first, last, step)
    return x


def gather(x: Tensor, indices: Any, *, axis: int = 0) -> Tensor:
    """x[..., indices, ...]; negative indices count from the end."""
    if isinstance(indices, np.ndarray) and indices.ndim == 0:
        return torch.select(x, axis, number(indices))
    index = as_tensor(indices).to(torch.int64)
    return x[(*(slice(None),) * axis_of(axis, x.dim()), index)]


def _wrapped(indices: Tensor, size: Size) -> Tensor:
    """Negative indices made positive."""
    return torch.where(indices < 0, indices + size, indices).to(torch.int64)


def gather_elements(x: Tensor, indices: Tensor, *, axis: int = 0) -> Tensor:
    """out[i][j] = x[indices[i][j]][j] for axis 0, and so on."""
    return torch.gather(x, axis, _wrapped(indices, x.shape[axis]))


def gather_nd(x: Tensor, indices: Tensor) -> Tensor:
    """Slices of x at the index tuples in the last axis of `indices`."""
    return x[tuple(indices.to(torch.int64).unbind(-1))]


def scatter_elements(x: Tensor, indices: Tensor, updates: Tensor, *, axis: int = 0) -> Tensor:
    """x with the entries that `gather_elements` would read replaced."""
    return torch.scatter(x, axis, _wrapped(indices, x.shape[axis]), updates)


def scatter_nd(x: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
    """x with the slices that `gather_nd` would read replaced."""
    return x.index_put(tuple(indices.to(torch.int64).unbind(-1)), updates)


def one_hot(indices: Tensor, depth: Any, values: Tensor, *, axis: int = -1) -> Tensor:
    """values[1] at the index along a new axis, values[0] elsewhere."""
    count = number(depth)
    index = torch.unsqueeze(_wrapped(indices, count), axis)
    sizes = [1] * index.dim()
    sizes[axis] = -1
    classes = torch.arange(count, device=index.device).reshape(sizes)
    return torch.where(index == classes, values[1], values[0])


def constant_of_shape(shape: Any, *, value: Host | None = None) -> Tensor:
    """A tensor of one value, float32 zero where none is given."""
    fill = as_tensor(np.zeros(1, np.float32) if value is None else value)
    return torch.full(numbers(shape), fill.reshape(()).item(), dtype=fill.dtype)


def range_(start: Any, limit: Any, delta: Any) -> Tensor:
    """start, start + delta, ... below limit, in the dtype of `start`."""
    ends = (number(start), number(limit), number(delta))
    typed = isinstance(start, np.ndarray) and start.dtype.kind != "O"
    dtype = as_tensor(start).dtype if typed else None
    return torch.arange(*ends, dtype=dtype)


def _source(axis_size: Size, begin: Size, end: Size, mode: str) -> Tensor:
    """Index into the axis for each entry of the padded axis."""
    index = torch.arange(-begin, axis_size + end)
    if mode == "edge":
        return torch.clamp(index, 0, axis_size - 1)
    if mode == "wrap":
        return torch.remainder(index, axis_size)
    period = sym_max(2 * (axis_size - 1), 1)
    folded = torch.remainder(index, period)
    return torch.where(folded < axis_size, folded, period - folded)


def pad(
    x: Tensor, pads: Any, value: Any = None, axes: Any = None, *, mode: str = "constant"
) -> Tensor:
    """Pads (all begins, then all ends) of the named axes; negative pads crop in constant mode."""
    amounts = numbers(pads)
    dims = list(range(x.dim())) if axes is None else [axis_of(a, x.dim()) for a in numbers(axes)]
    pairs: list[tuple[Size, Size]] = [(0, 0)] * x.dim()
    for i, dim in enumerate(dims):
        pairs[dim] = (amounts[i], amounts[i + len(dims)])
    if mode == "constant":
        flat = [amount for pair in reversed(pairs) for amount in pair]
        return F.pad(x, flat, value=0.0 if value is None else number(value))
    for dim, (begin, end) in enumerate(pairs):
        if (begin, end) != (0, 0):
            x = torch.index_select(x, dim, _source(x.shape[dim], begin, end, mode).to(x.device))
    return x


def trilu(x: Tensor, k: Any = 0, *, upper: int = 1) -> Tensor:
    """Upper or lower triangle from the k-th diagonal on."""
    return torch.triu(x, number(k)) if upper else torch.tril(x, number(k))


def depth_to_space(x: Tensor, *, blocksize: int, mode: str = "DCR") -> Tensor:
    """N x C x H x W -> N x C/b^2 x Hb x Wb; the block index comes first in C (DCR) or last."""
    if mode == "CRD":
        return F.pixel_shuffle(x, blocksize)
    n, c, h, w = x.shape
    b = blocksize
    blocks = x.reshape(n, b, b, c // (b * b), h, w).permute(0, 3, 4, 1, 5, 2)
    return blocks.reshape(n, c // (b * b), h * b, w * b)


def space_to_depth(x: Tensor, *, blocksize: int) -> Tensor:
    """N x C x H x W -> N x Cb^2 x H/b x W/b; the inverse of DepthToSpace in DCR mode."""
    n, c, h, w = x.shape
    b = blocksize
    blocks = x.reshape(n, c, h // b, b, w // b, b).permute(0, 3, 5, 1, 2, 4)
    return blocks.reshape(n, c * b * b, h // b, w // b)


def dropout(x: Tensor) -> tuple[Tensor, Tensor]:
    """x itself and an all-true mask: inference drops nothing."""
    return x, torch.ones_like(x, dtype=torch.bool)


def eye_like(x: Tensor, *, dtype: int | None = None, k: int = 0) -> Tensor:
    """Ones on the k-th diagonal, in the shape of a 2-D x."""
    rows = torch.arange(x.shape[0], device=x.device).unsqueeze(1)
    on = rows + k == torch.arange(x.shape[1], device=x.device)
    return on.to(x.dtype if dtype is None else DTYPES[dtype])


LAYOUT: dict[str, Rule] = {
    "Concat": concat,
    "ConstantOfShape": constant_of_shape,
    "DepthToSpace": depth_to_space,
    "Dropout": dropout,
    "Expand": expand,
    "EyeLike": eye_like,
    "Gather": gather,
    "GatherElements": gather_elements,
    "GatherND": gather_nd,
    "Identity": lambda x: x,
    "OneHot": one_hot,
    "Pad": pad,
    "Range": range_,
    "Reshape": reshape,
    "ScatterElements": scatter_elements,
    "ScatterND": scatter_nd,
    "Slice": slice_,
    "SpaceToDepth": space_to_depth,
    "Split": split,
    "Squeeze": squeeze,
    "Tile": tile,
    "Transpose": transpose,
    "Trilu": trilu,
    "Unsqueeze": unsqueeze,
}
