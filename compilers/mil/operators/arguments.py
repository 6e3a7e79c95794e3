"""Reading an operator's arguments: small tensors to Python numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

Operator = Callable[..., Any]


def ints(value: Tensor) -> list[int]:
    """A tensor of whole numbers, of rank 0 or 1, as a list."""
    return [int(item) for item in value.reshape(-1).tolist()]


def axis_of(axis: Tensor, rank: int) -> int:
    """An axis counted from the front."""
    return int(axis) % rank if rank else 0
