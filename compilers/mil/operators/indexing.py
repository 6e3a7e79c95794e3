"""Operators that pick and place by index, and sort."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from sdk.compilers.mil.operators.arguments import Operator, axis_of

# mode of a scatter -> torch's reduction, and what is done to the updates first
SCATTER: dict[str, tuple[str, Callable[[Tensor], Tensor]]] = {
    "add": ("sum", lambda updates: updates),
    "sub": ("sum", torch.neg),
    "mul": ("prod", lambda updates: updates),
    "div": ("prod", torch.reciprocal),
    "max": ("amax", lambda updates: updates),
    "min": ("amin", lambda updates: updates),
}


def _wrapped(indices: Tensor, size: int) -> Tensor:
    """Indices from the front, as int64; -1 is the last one."""
    indices = indices.long()
    return torch.where(indices < 0, indices + size, indices)


def gather(x: Tensor, indices: Tensor, axis: Tensor, batch_dims: Tensor, **_: object) -> Tensor:
    """x at `indices` along an axis; the first `batch_dims` axes of both go together."""
    along, batch = axis_of(axis, x.dim()), int(batch_dims)
    found = _wrapped(indices, x.shape[along])
    if batch:
        pairs = zip(x.flatten(0, batch - 1), found.flatten(0, batch - 1), strict=True)
        parts = [_take(sample, index, along - batch) for sample, index in pairs]
        return torch.unflatten(torch.stack(parts), 0, x.shape[:batch])
    return _take(x, found, along)


def _indexable(x: Tensor) -> Tensor:
    """x in a dtype that torch can pick from: it stores uint16 and does little else with it."""
    return x.int() if x.dtype == torch.uint16 else x


def _take(x: Tensor, indices: Tensor, axis: int) -> Tensor:
    picked = _indexable(x).index_select(axis, indices.reshape(-1)).to(x.dtype)
    return picked.reshape((*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :]))


def gather_along_axis(x: Tensor, indices: Tensor, axis: Tensor, **_: object) -> Tensor:
    """One element for each index, all other coordinates being those of the index."""
    along = axis_of(axis, x.dim())
    return torch.gather(_indexable(x), along, _wrapped(indices, x.shape[along])).to(x.dtype)


def gather_nd(x: Tensor, indices: Tensor, batch_dims: Tensor, **_: object) -> Tensor:
    """The last axis of `indices` holds coordinates into the axes of x behind the batch."""
    batch = int(batch_dims)
    if batch:
        pairs = zip(x.flatten(0, batch - 1), indices.flatten(0, batch - 1), strict=True)
        parts = [_pick(sample, index) for sample, index in pairs]
        return torch.unflatten(torch.stack(parts), 0, x.shape[:batch])
    return _pick(x, indices)


def _pick(x: Tensor, indices: Tensor) -> Tensor:
    return x[tuple(indices.long().unbind(-1))]


def scatter(
    data: Tensor, indices: Tensor, updates: Tensor, axis: Tensor, mode: str, **_: object
) -> Tensor:
    """Whole slices placed along an axis."""
    along = axis_of(axis, data.dim())
    shape = [-1 if i == along else 1 for i in range(data.dim())]
    spread = _wrapped(indices, data.shape[along]).reshape(shape).expand(updates.shape)
    return _scatter(data, along, spread, updates, mode)


def scatter_along_axis(
    data: Tensor, indices: Tensor, updates: Tensor, axis: Tensor, mode: str, **_: object
) -> Tensor:
    """Single elements placed along an axis."""
    along = axis_of(axis, data.dim())
    return _scatter(data, along, _wrapped(indices, data.shape[along]), updates, mode)


def scatter_nd(data: Tensor, indices: Tensor, updates: Tensor, mode: str, **_: object) -> Tensor:
    """Slices placed at the coordinates in the last axis of `indices`."""
    depth = indices.shape[-1]
    lead = data.shape[:depth]
    rest = math.prod(data.shape[depth:])
    strides = [math.prod(lead[i + 1 :]) for i in range(depth)]
    coordinates = [_wrapped(indices[..., i], lead[i]) * strides[i] for i in range(depth)]
    rows = torch.stack(coordinates).sum(0).reshape(-1, 1).expand(-1, rest)
    flat = _scatter(data.reshape(-1, rest), 0, rows, updates.reshape(-1, rest), mode)
    return flat.reshape(data.shape)


def _scatter(data: Tensor, axis: int, indices: Tensor, updates: Tensor, mode: str) -> Tensor:
    if mode == "update":
        return torch.scatter(data, axis, indices, updates)
    reduction, prepare = SCATTER[mode]
    return torch.scatter_reduce(data, axis, indices, prepare(updates), reduction)


def topk(
    x: Tensor,
    k: Tensor,
    axis: Tensor,
    ascending: Tensor,
    return_indices: Tensor | None = None,
    **_: object,
) -> tuple[Tensor, ...] | Tensor:
    """The k largest or smallest along an axis, sorted, and their indices."""
    along, smallest = axis_of(axis, x.dim()), bool(ascending)
    order = torch.sort(x, dim=along, descending=not smallest, stable=True)
    values, indices = (part.narrow(along, 0, int(k)) for part in order)
    if return_indices is not None and not bool(return_indices):
        return values
    return values, indices


def argsort(x: Tensor, axis: Tensor, ascending: Tensor) -> Tensor:
    """Indices that sort an axis."""
    return torch.argsort(x, dim=int(axis), descending=not bool(ascending), stable=True)


def one_hot(
    indices: Tensor, one_hot_vector_size: Tensor, axis: Tensor, on_value: Tensor, off_value: Tensor
) -> Tensor:
    """A new axis that has the on-value at the index."""
    size = int(one_hot_vector_size)
    along = axis_of(axis, indices.dim() + 1)
    shape = [size if i == along else 1 for i in range(indices.dim() + 1)]
    hit = torch.arange(size).reshape(shape) == _wrapped(indices, size).unsqueeze(along)
    return torch.where(hit, on_value, off_value)


OPERATORS: dict[str, Operator] = {
    "gather": gather,
    "gather_along_axis": gather_along_axis,
    "gather_nd": gather_nd,
    "scatter": scatter,
    "scatter_along_axis": scatter_along_axis,
    "scatter_nd": scatter_nd,
    "topk": topk,
    "argsort": argsort,
    "one_hot": one_hot,
    "non_zero": lambda x: torch.nonzero(x),
}
