"""Quantizing and dequantizing activations. Compressed constants are unpacked at opening."""

from __future__ import annotations

import torch
from torch import Tensor

from sdk.compilers.mil.operators.arguments import Operator

BOUNDS = {"int8": (-128, 127), "uint8": (0, 255)}


def _along(values: Tensor | None, x: Tensor, axis: Tensor | None) -> Tensor:
    """One value, or one for each element of an axis."""
    if values is None:
        return torch.zeros((), dtype=torch.float32)
    if axis is None or values.dim() == 0:
        return values.float()
    shape = [-1 if i == int(axis) % x.dim() else 1 for i in range(x.dim())]
    return values.float().reshape(shape)


def quantize(
    input: Tensor,
    scale: Tensor,
    output_dtype: str,
    zero_point: Tensor | None = None,
    axis: Tensor | None = None,
) -> Tensor:
    """clip(round(x / scale) + zero point), ties to even."""
    low, high = BOUNDS[output_dtype]
    steps = torch.round(input / _along(scale, input, axis)) + _along(zero_point, input, axis)
    return steps.clamp(low, high).to(getattr(torch, output_dtype))


def dequantize(
    input: Tensor, scale: Tensor, zero_point: Tensor | None = None, axis: Tensor | None = None
) -> Tensor:
    """scale (q - zero point)."""
    return (input.float() - _along(zero_point, input, axis)) * _along(scale, input, axis)


OPERATORS: dict[str, Operator] = {"quantize": quantize, "dequantize": dequantize}
