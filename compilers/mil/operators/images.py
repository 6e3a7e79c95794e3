"""Operators that resize and resample pictures (the last two axes)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from sdk.compilers.mil.operators.arguments import Operator, ints

MODES = ("DEFAULT", "STRICT_ALIGN_CORNERS", "ALIGN_CORNERS", "OFFSET_CORNERS", "UNALIGN_CORNERS")
PADDING = {"constant": "zeros", "border": "border", "reflection": "reflection"}


def grid_points(size: int, count: int, mode: str) -> Tensor:
    """Where in [0, size - 1] each of `count` samples lies, by Core ML's sampling mode."""
    steps = torch.arange(count, dtype=torch.float32)
    if mode in ("STRICT_ALIGN_CORNERS", "ALIGN_CORNERS"):
        if count == 1:
            return torch.full((1,), (size - 1) / 2 if mode == "ALIGN_CORNERS" else 0.0)
        return steps * ((size - 1) / (count - 1))
    if mode == "DEFAULT":
        points = steps * (size / count)
    elif mode == "OFFSET_CORNERS":
        points = (steps + 0.5) * (max(1, size - 1) / count)
    else:
        points = (steps + 0.5) * (size / count) - 0.5
    return points.clamp(0, size - 1)


def _linear(x: Tensor, axis: int, points: Tensor) -> Tensor:
    """x along an axis at fractional positions."""
    low = points.floor().long()
    high = (low + 1).clamp(max=x.shape[axis] - 1)
    shape = [-1 if i == axis % x.dim() else 1 for i in range(x.dim())]
    part = (points - low).reshape(shape)
    return x.index_select(axis, low) * (1 - part) + x.index_select(axis, high) * part


def _bilinear(x: Tensor, height: int, width: int, mode: str) -> Tensor:
    x = _linear(x, -2, grid_points(x.shape[-2], height, mode))
    return _linear(x, -1, grid_points(x.shape[-1], width, mode))


def _nearest(x: Tensor, height: int, width: int) -> Tensor:
    """Each sample takes the pixel that it lies in."""
    for axis, count in ((-2, height), (-1, width)):
        x = x.index_select(axis, torch.arange(count) * x.shape[axis] // count)
    return x


def resize_bilinear(
    x: Tensor, target_size_height: Tensor, target_size_width: Tensor, sampling_mode: str
) -> Tensor:
    """To a size given in pixels."""
    return _bilinear(x, int(target_size_height), int(target_size_width), sampling_mode)


def resize_nearest_neighbor(
    x: Tensor, target_size_height: Tensor, target_size_width: Tensor
) -> Tensor:
    """To a size given in pixels."""
    return _nearest(x, int(target_size_height), int(target_size_width))


def _scaled(x: Tensor, scale_height: Tensor, scale_width: Tensor) -> tuple[int, int]:
    factors = (scale_height, scale_width)
    # A factor such as 7/3 is a little less in float32: floor alone would lose a pixel.
    height, width = (
        math.floor(size * float(factor) + 1e-4)
        for size, factor in zip(x.shape[-2:], factors, strict=True)
    )
    return height, width


def upsample_nearest_neighbor(
    x: Tensor, scale_factor_height: Tensor, scale_factor_width: Tensor
) -> Tensor:
    """By factors."""
    return _nearest(x, *_scaled(x, scale_factor_height, scale_factor_width))


def upsample_bilinear(
    x: Tensor,
    scale_factor_height: Tensor,
    scale_factor_width: Tensor,
    align_corners: Tensor,
    half_pixel_centers: Tensor | None = None,
) -> Tensor:
    """By factors; without aligned corners pixels have their centres at halves, unless told."""
    centred = not bool(align_corners) if half_pixel_centers is None else bool(half_pixel_centers)
    mode = "UNALIGN_CORNERS" if centred else "DEFAULT"
    if bool(align_corners):
        mode = "STRICT_ALIGN_CORNERS"
    return _bilinear(x, *_scaled(x, scale_factor_height, scale_factor_width), mode)


def resize(
    x: Tensor, shape: Tensor, resized_dims: Tensor, interpolation_mode: str, sampling_mode: str
) -> Tensor:
    """The last axes to the last sizes of `shape`; 0 keeps a size."""
    count = int(resized_dims)
    for axis, wanted in zip(range(-count, 0), ints(shape)[-count:], strict=True):
        size = x.shape[axis]
        points = grid_points(size, wanted or size, sampling_mode)
        if interpolation_mode == "LINEAR":
            x = _linear(x, axis, points)
        else:
            rounded = points.floor() if sampling_mode == "DEFAULT" else points.round()
            x = x.index_select(axis, rounded.long())
    return x


def resample(
    x: Tensor,
    coordinates: Tensor,
    sampling_mode: str,
    padding_mode: str,
    padding_value: Tensor,
    coordinates_mode: str,
    align_corners: Tensor,
) -> Tensor:
    """The picture at coordinates from -1 to 1, (x, y) in the last axis."""
    if (
        coordinates_mode != "normalized_minus_one_to_one"
        or padding_mode not in PADDING
        or (padding_mode == "constant" and float(padding_value) != 0)
    ):
        raise NotImplementedError(f"{coordinates_mode}, padding {padding_mode} {padding_value}")
    return F.grid_sample(
        x,
        coordinates.float(),
        mode=sampling_mode,
        padding_mode=PADDING[padding_mode],
        align_corners=bool(align_corners),
    )


OPERATORS: dict[str, Operator] = {
    "resize_bilinear": resize_bilinear,
    "resize_nearest_neighbor": resize_nearest_neighbor,
    "upsample_nearest_neighbor": upsample_nearest_neighbor,
    "upsample_bilinear": upsample_bilinear,
    "resize": resize,
    "resample": resample,
}
