"""Operators that reduce axes, and running sums."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from sdk.compilers.mil.operators.arguments import Operator, ints

Reduce = Callable[[Tensor, list[int], bool], Tensor]


def _over(function: Reduce) -> Operator:
    """Reduce the axes, all of them where none are named."""

    def operator(x: Tensor, axes: Tensor | None, keep_dims: Tensor) -> Tensor:
        named = list(range(x.dim())) if axes is None else [axis % x.dim() for axis in ints(axes)]
        return function(x, named, bool(keep_dims))

    return operator


def _sum(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    return torch.sum(x, axes, keep, dtype=x.dtype)


def _prod(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    for axis in sorted(axes, reverse=True):
        x = torch.prod(x, axis, keep, dtype=x.dtype)
    return x


def _argument(function: Callable[[Tensor, int, bool], Tensor]) -> Operator:
    def operator(
        x: Tensor, axis: Tensor, keep_dims: Tensor, output_dtype: str | None = None
    ) -> Tensor:
        found = function(x, int(axis), bool(keep_dims))
        return found if output_dtype is None else found.to(getattr(torch, output_dtype))

    return operator


def cumsum(x: Tensor, axis: Tensor, exclusive: Tensor, reverse: Tensor) -> Tensor:
    """Running sum along an axis, from either end, with or without the element itself."""
    along = int(axis)
    values = x.flip(along) if bool(reverse) else x
    total = torch.cumsum(values, along, dtype=x.dtype)
    if bool(exclusive):
        total = total - values
    return total.flip(along) if bool(reverse) else total


OPERATORS: dict[str, Operator] = {
    "reduce_sum": _over(_sum),
    "reduce_mean": _over(lambda x, axes, keep: torch.mean(x, axes, keep)),
    "reduce_max": _over(lambda x, axes, keep: torch.amax(x, axes, keep)),
    "reduce_min": _over(lambda x, axes, keep: torch.amin(x, axes, keep)),
    "reduce_prod": _over(_prod),
    "reduce_l1_norm": _over(lambda x, axes, keep: _sum(x.abs(), axes, keep)),
    "reduce_l2_norm": _over(lambda x, axes, keep: _sum(x.square(), axes, keep).sqrt()),
    "reduce_sum_square": _over(lambda x, axes, keep: _sum(x.square(), axes, keep)),
    "reduce_log_sum": _over(lambda x, axes, keep: _sum(x, axes, keep).log()),
    "reduce_log_sum_exp": _over(lambda x, axes, keep: torch.logsumexp(x, axes, keep)),
    "reduce_argmax": _argument(torch.argmax),
    "reduce_argmin": _argument(torch.argmin),
    "cumsum": cumsum,
}
