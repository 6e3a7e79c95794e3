"""ONNX Resize and Upsample in plain torch.

Source: https://onnx.ai/onnx/operators/onnx__Resize.html. The combinations that
torch.interpolate computes go to it, because engines know it; the others are interpolated axis by
axis from the formula.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sdk.compilers.onnx_ops.values import Rule, Size, numbers, symbolic
from sdk.errors import UnsupportedOperatorError

LINEAR = {3: "linear", 4: "bilinear", 5: "trilinear"}
HALF_PIXEL = ("half_pixel", "pytorch_half_pixel")


@dataclass(frozen=True)
class Axis:
    """One resized axis: its sizes, and the scale that maps coordinates."""

    dim: int
    size: Size
    out: Size
    scale: Any

    @property
    def exact(self) -> bool:
        """Whether the scale is out / size, as torch assumes."""
        return symbolic(self.size) or bool(self.out == self.scale * self.size)


def _scaled(dim: int, size: Size, scale: float) -> Axis:
    """floor(size * scale), in float32 as the engines compute it."""
    if float(scale).is_integer():
        return Axis(dim, size, size * int(scale), scale)
    if symbolic(size):
        return Axis(dim, size, math.floor(size * scale), scale)
    return Axis(dim, size, math.floor(np.float32(size) * np.float32(scale)), scale)


def _sized(dim: int, size: Size, out: Size) -> Axis:
    whole = not symbolic(size) and not symbolic(out)
    return Axis(dim, size, out, out / size if whole else 1.0 * out / size)


def resized_axes(x: Tensor, scales: Any, sizes: Any, axes: list[int] | None) -> list[Axis]:
    """The axes that Resize names, from its scales or its sizes; an empty input counts as absent."""
    dims = list(range(x.dim())) if axes is None else [a % x.dim() for a in axes]
    given = [] if scales is None else numbers(scales)
    if given:
        return [_scaled(d, x.shape[d], s) for d, s in zip(dims, given, strict=True)]
    outs = zip(dims, numbers(sizes), strict=True)
    return [_sized(d, x.shape[d], out) for d, out in outs]


# coordinate in the input of each coordinate of the output
COORDINATES: dict[str, Callable[[Tensor, Axis], Tensor]] = {
    "half_pixel": lambda i, a: (i + 0.5) / a.scale - 0.5,
    "pytorch_half_pixel": lambda i, a: (i + 0.5) / a.scale - 0.5 if a.out > 1 else i * 0.0,
    "asymmetric": lambda i, a: i / a.scale,
    "align_corners": lambda i, a: i * (a.size - 1) / (a.out - 1) if a.out > 1 else i * 0.0,
}

NEAREST: dict[str, Callable[[Tensor], Tensor]] = {
    "round_prefer_floor": lambda at: torch.ceil(at - 0.5),
    "round_prefer_ceil": lambda at: torch.floor(at + 0.5),
    "floor": torch.floor,
    "ceil": torch.ceil,
}


def _pick(x: Tensor, axis: Axis, index: Tensor) -> Tensor:
    inside = torch.clamp(index, 0, axis.size - 1).to(torch.int64)
    return torch.index_select(x, axis.dim, inside)


def _linear(x: Tensor, axis: Axis, at: Tensor) -> Tensor:
    """Between the two neighbours; outside the axis its border value goes on."""
    left = torch.floor(at)
    sizes = [1] * x.dim()
    sizes[axis.dim] = -1
    weight = (at - left).to(x.dtype).reshape(sizes)
    return _pick(x, axis, left) * (1 - weight) + _pick(x, axis, left + 1) * weight


def _native_mode(
    x: Tensor, axes: list[Axis], mode: str, coordinates: str, nearest_mode: str
) -> str | None:
    """The mode of torch.interpolate that computes the same, or None."""
    spatial = [a for a in axes if symbolic(a.scale) or a.scale != 1]
    if x.dim() not in LINEAR or not all(a.exact and a.dim >= 2 for a in spatial):
        return None
    if mode == "nearest":
        return _native_nearest(spatial, coordinates, nearest_mode)
    long = all(symbolic(a.out) or a.out > 1 for a in spatial)
    if coordinates not in (*HALF_PIXEL, "align_corners") or not (
        coordinates == "half_pixel" or long
    ):
        return None
    return LINEAR[x.dim()] if mode == "linear" else ("bicubic" if x.dim() == 4 else None)


def _native_nearest(axes: list[Axis], coordinates: str, nearest_mode: str) -> str | None:
    """Whole factors have no ties, so that every half-pixel rounding is i // factor."""
    if coordinates == "asymmetric" and nearest_mode == "floor":
        return "nearest"
    if coordinates not in HALF_PIXEL or not nearest_mode.startswith("round"):
        return None
    whole = all(not symbolic(a.scale) and float(a.scale).is_integer() for a in axes)
    return "nearest" if whole else None


def resize(
    x: Tensor,
    roi: Any = None,
    scales: Any = None,
    sizes: Any = None,
    *,
    axes: list[int] | None = None,
    coordinate_transformation_mode: str = "half_pixel",
    cubic_coeff_a: float = -0.75,
    mode: str = "nearest",
    nearest_mode: str = "round_prefer_floor",
) -> Tensor:
    """x resampled to floor(size * scale) or to the given sizes, by axis.

    Raises UnsupportedOperatorError for cubic modes that torch.interpolate lacks.
    """
    del roi  # only tf_crop_and_resize reads it, which is refused when the file is read
    plan, coordinates = resized_axes(x, scales, sizes, axes), coordinate_transformation_mode
    native = _native_mode(x, plan, mode, coordinates, nearest_mode)
    if native is not None and (native != "bicubic" or cubic_coeff_a == -0.75):
        out = {a.dim: a.out for a in plan}
        corners = None if native == "nearest" else coordinates == "align_corners"
        target = [out.get(dim, x.shape[dim]) for dim in range(2, x.dim())]
        return F.interpolate(x, size=target, mode=native, align_corners=corners)
    if mode == "cubic":
        raise UnsupportedOperatorError(
            f"Resize in cubic mode with {coordinates} and coefficient {cubic_coeff_a}.",
            expected="N x C x H x W, half_pixel or align_corners, coefficient -0.75",
            fix="use mode linear, or those settings",
        )
    return _by_axis(x, plan, mode, COORDINATES[coordinates], NEAREST[nearest_mode])


def _by_axis(
    x: Tensor,
    plan: list[Axis],
    mode: str,
    coordinate: Callable[[Tensor, Axis], Tensor],
    rounded: Callable[[Tensor], Tensor],
) -> Tensor:
    for axis in plan:
        if not symbolic(axis.scale) and axis.scale == 1:
            continue
        at = coordinate(torch.arange(axis.out, dtype=torch.float32, device=x.device), axis)
        x = _linear(x, axis, at) if mode == "linear" else _pick(x, axis, rounded(at))
    return x


def upsample(x: Tensor, scales: Any, *, mode: str = "nearest") -> Tensor:
    """Upsample (opsets 7 to 9) and Resize of opset 10: asymmetric, nearest by floor."""
    return resize(
        x,
        None,
        scales,
        mode=mode,
        coordinate_transformation_mode="asymmetric",
        nearest_mode="floor",
    )


RESIZE: dict[str, Rule] = {"Resize": resize, "Upsample": upsample}
RESIZE_BEFORE: dict[tuple[str, int], Rule] = {("Resize", 11): upsample}
