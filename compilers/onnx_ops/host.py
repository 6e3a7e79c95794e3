"""ONNX operators on shapes: names and attributes as in the table for tensors, on host arrays.

Each rule takes and returns NumPy arrays whose entries may be symbolic sizes (see values.py). A rule
that returns None leaves the node to the table for tensors.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from functools import reduce
from typing import Any

import numpy as np
import torch

from sdk.compilers.onnx_ops.values import (
    DTYPES,
    HOST_LIMIT,
    Host,
    Rule,
    boxed,
    numbers,
    product,
    sym_max,
    sym_min,
    symbolic,
)


def shape(x: Any, *, start: int = 0, end: int | None = None) -> Host:
    """Sizes of a tensor or host array as a 1-D host array."""
    return boxed(list(x.shape)[slice(start, end)])


def size(x: Any) -> Host:
    """Number of elements of a tensor or host array."""
    return boxed([product(x.shape)]).reshape(())


def elementwise(function: Callable[..., Any]) -> Rule:
    """NumPy's ufunc where all entries are plain numbers, `function` entry by entry otherwise."""
    by_entry = np.frompyfunc(function, function.__code__.co_argcount, 1)

    def rule(*inputs: Host) -> Any:
        return by_entry(*(x.astype(object) for x in inputs))

    return rule


def typed(function: Callable[..., Any], plain: Callable[..., Any]) -> Rule:
    """`plain` on typed arrays, so that the dtype is ONNX's; `function` where a size is symbolic.

    None for another number of inputs (Max of three).
    """
    by_entry = elementwise(function)

    def rule(*inputs: Host) -> Any:
        if len(inputs) != function.__code__.co_argcount:
            return None
        open_sizes = any(x.dtype == object for x in inputs)
        return by_entry(*inputs) if open_sizes else plain(*inputs)

    return rule


def divide(a: Any, b: Any) -> Any:
    """Division of ONNX: integers truncate; sizes are never negative, so `//` serves symbols."""
    if isinstance(a, float | torch.SymFloat) or isinstance(b, float | torch.SymFloat):
        return a / b
    if symbolic(a) or symbolic(b):
        return a // b
    return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


def _divide_typed(a: Host, b: Host) -> Any:
    if np.issubdtype(a.dtype, np.floating):
        return a / b
    return np.asarray(elementwise(lambda x, y: divide(x, y))(a, b)).astype(a.dtype)


def cast(x: Host, *, to: int) -> Any:
    """Cast of plain or symbolic entries; None for types that a shape never has."""
    dtype = DTYPES[to]
    if x.dtype != object:
        return (
            x.astype(torch.empty(0, dtype=dtype).numpy().dtype) if dtype != torch.bfloat16 else None
        )
    convert: Callable[[Any], Any] = torch.sym_float if dtype.is_floating_point else torch.sym_int
    return None if dtype == torch.bool else boxed(convert(v) for v in x.ravel()).reshape(x.shape)


def gather(x: Host, indices: Host, *, axis: int = 0) -> Any:
    """x taken along `axis`; negative indices count from the end."""
    return np.take(x, indices.astype(np.int64), axis=axis)


def slice_(x: Host, starts: Any, ends: Any, axes: Any = None, steps: Any = None) -> Any:
    """ONNX Slice; Python's slice has the same clamping."""
    begin, end = numbers(starts), numbers(ends)
    dims = range(len(begin)) if axes is None else numbers(axes)
    strides = [1] * len(begin) if steps is None else numbers(steps)
    cut = [slice(None)] * x.ndim
    for dim, first, last, step in zip(dims, begin, end, strides, strict=True):
        cut[dim] = slice(first, None if step < 0 and last < -(2**30) else last, step)
    return x[tuple(cut)]


def squeeze(x: Host, axes: Any = None) -> Any:
    """x without the axes of size 1 that are named, or without all."""
    return np.squeeze(x, None if axes is None else tuple(numbers(axes)))


def reshape(x: Host, shape: Any, *, allowzero: int = 0) -> Any:
    """ONNX Reshape: 0 copies the size of x unless allowzero."""
    sizes = numbers(shape)
    return x.reshape([x.shape[i] if s == 0 and not allowzero else s for i, s in enumerate(sizes)])


def constant_of_shape(shape: Host, *, value: Host | None = None) -> Any:
    """A short vector; None for anything larger, which is data."""
    sizes = numbers(shape)
    if len(sizes) > 1 or any(symbolic(s) or s > HOST_LIMIT for s in sizes):
        return None
    return np.full(
        sizes, 0.0 if value is None else value.ravel()[0], getattr(value, "dtype", np.float32)
    )


def range_(start: Host, limit: Host, delta: Host) -> Any:
    """A short vector of plain numbers; None for anything else."""
    if any(x.dtype == object for x in (start, limit, delta)):
        return None
    first, last, step = (x.ravel()[0] for x in (start, limit, delta))
    short = abs(last - first) <= HOST_LIMIT * abs(step)
    return np.arange(first, last, step, dtype=start.dtype) if short else None


def expand(x: Host, shape: Any) -> Any:
    """A short array broadcast to plain sizes; None for anything else."""
    sizes = numbers(shape)
    if any(symbolic(s) for s in sizes) or product(sizes) > HOST_LIMIT:
        return None
    return np.broadcast_to(x, np.broadcast_shapes(x.shape, tuple(sizes)))


def split(x: Host, split: Any = None, *, axis: int = 0, num_outputs: int) -> Any:
    """Parts of the named sizes, or equal parts of which the last may be smaller."""
    chunk = -(-x.shape[axis] // num_outputs)
    parts = [chunk] * (num_outputs - 1) if split is None else numbers(split)[:-1]
    return tuple(np.split(x, np.cumsum(parts), axis=axis))


def reduction(combine: Callable[[Any, Any], Any]) -> Rule:
    """Reduction of all entries of a vector; None for anything else."""

    def rule(x: Host, axes: Any = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0) -> Any:
        if x.ndim != 1 or x.size == 0 or (axes is None and noop_with_empty_axes):
            return None
        return boxed([reduce(combine, x.tolist())]).reshape((1,) if keepdims else ())

    return rule


def where(condition: Host, x: Host, y: Host) -> Any:
    """Entries of x where the condition holds, else of y."""
    return np.where(condition.astype(bool), x, y)


HOST_OPERATORS: dict[str, Rule] = {
    "Abs": typed(lambda a: abs(a), np.abs),
    "Add": typed(lambda a, b: a + b, np.add),
    "And": typed(lambda a, b: a and b, np.logical_and),
    "Cast": cast,
    "Ceil": typed(lambda a: math.ceil(a), np.ceil),
    "Concat": lambda *parts, axis: np.concatenate(parts, axis=axis),
    "ConstantOfShape": constant_of_shape,
    "Div": typed(lambda a, b: divide(a, b), _divide_typed),
    "Equal": typed(lambda a, b: a == b, np.equal),
    "Expand": expand,
    "Floor": typed(lambda a: math.floor(a), np.floor),
    "Gather": gather,
    "Greater": typed(lambda a, b: a > b, np.greater),
    "GreaterOrEqual": typed(lambda a, b: a >= b, np.greater_equal),
    "Identity": lambda x: x,
    "Less": typed(lambda a, b: a < b, np.less),
    "LessOrEqual": typed(lambda a, b: a <= b, np.less_equal),
    "Max": typed(lambda a, b: sym_max(a, b), np.maximum),
    "Min": typed(lambda a, b: sym_min(a, b), np.minimum),
    "Mod": typed(lambda a, b: a % b, np.mod),
    "Mul": typed(lambda a, b: a * b, np.multiply),
    "Neg": typed(lambda a: -a, np.negative),
    "Not": typed(lambda a: not a, np.logical_not),
    "Or": typed(lambda a, b: a or b, np.logical_or),
    "Range": range_,
    "ReduceMax": reduction(lambda a, b: sym_max(a, b)),
    "ReduceMin": reduction(lambda a, b: sym_min(a, b)),
    "ReduceProd": reduction(operator.mul),
    "ReduceSum": reduction(operator.add),
    "Reshape": reshape,
    "Shape": shape,
    "Size": size,
    "Slice": slice_,
    "Split": split,
    "Sqrt": typed(lambda a: torch.sym_sqrt(a), np.sqrt),
    "Squeeze": squeeze,
    "Sub": typed(lambda a, b: a - b, np.subtract),
    "Tile": lambda x, repeats: np.tile(x, numbers(repeats)),
    "Transpose": lambda x, perm=None: np.transpose(x, perm),
    "Unsqueeze": lambda x, axes: np.expand_dims(x, tuple(numbers(axes))),
    "Where": where,
}
