"""Operators that only move values: shapes, slices, joins, padding, and what makes constants."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from sdk.compilers.mil.operators.arguments import Operator, axis_of, ints


def reshape(x: Tensor, shape: Tensor) -> Tensor:
    """-1 is what is left; 0 is the size that x has there."""
    sizes = ints(shape)
    if len(sizes) == x.dim():
        sizes = [old if new == 0 else new for old, new in zip(x.shape, sizes, strict=True)]
    return x.reshape(sizes)


def reshape_like(
    x: Tensor,
    ref_tensors: Sequence[Tensor],
    begins: Sequence[Tensor],
    ends: Sequence[Tensor],
    end_masks: Sequence[Tensor],
) -> Tensor:
    """The shape is put together from pieces of other tensors' shapes."""
    sizes: list[int] = []
    for other, begin, end, open_end in zip(ref_tensors, begins, ends, end_masks, strict=True):
        sizes += other.shape[int(begin) :] if bool(open_end) else other.shape[int(begin) : int(end)]
    return x.reshape(sizes)


def expand_dims(x: Tensor, axes: Tensor) -> Tensor:
    """New axes of size 1, counted in the result."""
    rank = x.dim() + axes.numel()
    for axis in sorted(axis % rank for axis in ints(axes)):
        x = x.unsqueeze(axis)
    return x


def squeeze(x: Tensor, axes: Tensor | None) -> Tensor:
    """Drop axes of size 1: the named ones, or all."""
    return x.squeeze() if axes is None else x.squeeze(tuple(ints(axes)))


def reverse(x: Tensor, axes: Tensor | None) -> Tensor:
    """Turn axes round: the named ones, or all."""
    return x.flip(list(range(x.dim())) if axes is None else ints(axes))


def reverse_sequence(x: Tensor, lengths: Tensor, seq_axis: Tensor, batch_axis: Tensor) -> Tensor:
    """Turn the first `lengths[i]` steps of sample i round."""
    along, batch = axis_of(seq_axis, x.dim()), axis_of(batch_axis, x.dim())
    samples = []
    for sample, count in zip(torch.split(x, 1, batch), ints(lengths), strict=True):
        front, rest = torch.split(sample, [count, x.shape[along] - count], along)
        samples.append(torch.cat([front.flip(along), rest], along))
    return torch.cat(samples, batch)


def _ranges(
    shape: Sequence[int],
    begin: Tensor,
    end: Tensor,
    stride: Tensor | None,
    begin_mask: Tensor | None,
    end_mask: Tensor | None,
    squeeze_mask: Tensor | None,
) -> list[list[int]]:
    """The positions that a slice takes of each axis, by Python's own rules."""
    rank = len(shape)
    steps = [1] * rank if stride is None else ints(stride)
    masks = [[0] * rank if m is None else ints(m) for m in (begin_mask, end_mask, squeeze_mask)]
    picked = []
    for axis, size in enumerate(shape):
        first, last = int(begin[axis]), int(end[axis])
        start, stop = (None if masks[0][axis] else first), (None if masks[1][axis] else last)
        if masks[2][axis]:
            picked.append([first % size])
        else:
            picked.append(list(range(size))[start : stop : steps[axis]])
    return picked


def slice_by_index(
    x: Tensor,
    begin: Tensor,
    end: Tensor,
    stride: Tensor | None,
    begin_mask: Tensor | None,
    end_mask: Tensor | None,
    squeeze_mask: Tensor | None,
) -> Tensor:
    """x[begin:end:stride, ...]; a squeezed axis is indexed at its begin."""
    picked = _ranges(x.shape, begin, end, stride, begin_mask, end_mask, squeeze_mask)
    dropped = [] if squeeze_mask is None else [i for i, m in enumerate(ints(squeeze_mask)) if m]
    for axis, positions in enumerate(picked):
        if positions != list(range(x.shape[axis])):
            x = x.index_select(axis, torch.tensor(positions, dtype=torch.long))
    return x.squeeze(tuple(dropped)) if dropped else x


def slice_update(
    x: Tensor,
    update: Tensor,
    begin: Tensor,
    end: Tensor,
    stride: Tensor | None,
    begin_mask: Tensor | None,
    end_mask: Tensor | None,
    squeeze_mask: Tensor | None,
) -> Tensor:
    """A copy of x with `update` in the place of a slice."""
    picked = _ranges(x.shape, begin, end, stride, begin_mask, end_mask, squeeze_mask)
    grid = torch.meshgrid(*(torch.tensor(p, dtype=torch.long) for p in picked), indexing="ij")
    return x.index_put(grid, update.reshape(grid[0].shape))


def slice_by_size(x: Tensor, begin: Tensor, size: Tensor) -> Tensor:
    """`size` elements from `begin` on; -1 is all that follow."""
    for axis, (first, count) in enumerate(zip(ints(begin), ints(size), strict=True)):
        start = first % x.shape[axis] if x.shape[axis] else 0
        x = x.narrow(axis, start, x.shape[axis] - start if count == -1 else count)
    return x


def concat(values: Sequence[Tensor], axis: Tensor, interleave: Tensor) -> Tensor:
    """Join along an axis, one after the other or by turns; single values are vectors of one."""
    values = [value.reshape(-1) if value.dim() == 0 else value for value in values]
    along = axis_of(axis, values[0].dim())
    if bool(interleave):
        return torch.stack(list(values), along + 1).flatten(along, along + 1)
    return torch.cat(list(values), along)


def split(
    x: Tensor, num_splits: Tensor | None, split_sizes: Tensor | None, axis: Tensor
) -> tuple[Tensor, ...]:
    """Equal parts, or parts of the sizes given."""
    along = axis_of(axis, x.dim())
    if split_sizes is not None:
        return torch.split(x, ints(split_sizes), along)
    assert num_splits is not None
    return torch.split(x, x.shape[along] // int(num_splits), along)


def pad(x: Tensor, pad: Tensor, mode: str, constant_val: Tensor) -> Tensor:
    """Pad the last axes; `pad` holds (before, after) for each of them, first axis first."""
    amounts = ints(pad)
    pairs = list(zip(amounts[::2], amounts[1::2], strict=True))
    if mode == "constant":
        flat = [amount for pair in reversed(pairs) for amount in pair]
        return F.pad(x, flat, value=constant_val.item())
    for axis, (before, after) in enumerate(pairs, x.dim() - len(pairs)):
        x = x.index_select(axis, _beyond(x.shape[axis], before, after, mode))
    return x


def _beyond(size: int, before: int, after: int, mode: str) -> Tensor:
    """Positions of a padded axis: mirrored at the first and last element, or clamped to them."""
    positions = torch.arange(-before, size + after)
    if mode == "replicate":
        return positions.clamp(0, size - 1)
    mirrored = positions.abs()
    return torch.where(mirrored >= size, 2 * (size - 1) - mirrored, mirrored)


def sliding_windows(x: Tensor, axis: Tensor, size: Tensor, stride: Tensor) -> Tensor:
    """Windows along an axis; their elements are a new axis behind it."""
    along = axis_of(axis, x.dim())
    return x.unfold(along, int(size), int(stride)).movedim(-1, along + 1)


def depth_to_space(x: Tensor, block_size: Tensor) -> Tensor:
    """Blocks of channels to pixels; the channel varies fastest within a block."""
    n, c, h, w = x.shape
    b = int(block_size)
    blocks = x.reshape(n, b, b, c // b**2, h, w).permute(0, 3, 4, 1, 5, 2)
    return blocks.reshape(n, c // b**2, h * b, w * b)


def space_to_depth(x: Tensor, block_size: Tensor) -> Tensor:
    """The inverse of `depth_to_space`."""
    n, c, h, w = x.shape
    b = int(block_size)
    blocks = x.reshape(n, c, h // b, b, w // b, b).permute(0, 3, 5, 1, 2, 4)
    return blocks.reshape(n, c * b**2, h // b, w // b)


def space_to_batch(x: Tensor, block_shape: Tensor, paddings: Tensor) -> Tensor:
    """Pad, and deal the pixels of each block out to new samples."""
    (top, bottom), (left, right) = paddings.tolist()
    x = F.pad(x, (left, right, top, bottom))
    n, c, h, w = x.shape
    bh, bw = ints(block_shape)
    blocks = x.reshape(n, c, h // bh, bh, w // bw, bw).permute(3, 5, 0, 1, 2, 4)
    return blocks.reshape(n * bh * bw, c, h // bh, w // bw)


def batch_to_space(x: Tensor, block_shape: Tensor, crops: Tensor) -> Tensor:
    """The inverse of `space_to_batch`."""
    n, c, h, w = x.shape
    bh, bw = ints(block_shape)
    blocks = x.reshape(bh, bw, n // (bh * bw), c, h, w).permute(2, 3, 4, 0, 5, 1)
    whole = blocks.reshape(n // (bh * bw), c, h * bh, w * bw)
    (top, bottom), (left, right) = crops.tolist()
    return whole[:, :, top : h * bh - bottom, left : w * bw - right]


def crop(x: Tensor, crop_height: Tensor, crop_width: Tensor) -> Tensor:
    """Cut (before, after) off the last two axes."""
    for axis, (before, after) in ((-2, ints(crop_height)), (-1, ints(crop_width))):
        x = x.narrow(axis, before, x.shape[axis] - before - after)
    return x


def flatten2d(x: Tensor, axis: Tensor) -> Tensor:
    """All axes before `axis` to rows, the others to columns."""
    return x.reshape(math.prod(x.shape[: axis_of(axis, x.dim() + 1)]), -1)


def band_part(x: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    """Zeros outside a band of diagonals; a negative count keeps that side whole."""
    below, above = int(lower), int(upper)
    if below >= 0:
        x = torch.triu(x, -below)
    return torch.tril(x, above) if above >= 0 else x


OPERATORS: dict[str, Operator] = {
    "reshape": reshape,
    "reshape_like": reshape_like,
    "expand_dims": expand_dims,
    "squeeze": squeeze,
    "transpose": lambda x, perm: x.permute(ints(perm)),
    "reverse": reverse,
    "reverse_sequence": reverse_sequence,
    "slice_by_index": slice_by_index,
    "slice_by_size": slice_by_size,
    "slice_update": slice_update,
    "concat": concat,
    "stack": lambda values, axis: torch.stack(list(values), int(axis)),
    "split": split,
    "pad": pad,
    "tile": lambda x, reps: x.repeat(ints(reps)),
    "sliding_windows": sliding_windows,
    "depth_to_space": depth_to_space,
    "space_to_depth": space_to_depth,
    "space_to_batch": space_to_batch,
    "batch_to_space": batch_to_space,
    "pixel_shuffle": lambda x, upscale_factor: F.pixel_shuffle(x, int(upscale_factor)),
    "pixel_unshuffle": lambda x, downscale_factor: F.pixel_unshuffle(x, int(downscale_factor)),
    "crop": crop,
    "flatten2d": flatten2d,
    "band_part": band_part,
    "shape": lambda x: torch.tensor(x.shape, dtype=torch.int32),
    "fill": lambda shape, value: value.expand(ints(shape)),
    "fill_like": lambda ref_tensor, value: value.expand(ref_tensor.shape),
    "range_1d": lambda end, start, step: torch.arange(start.item(), end.item(), step.item()),
}
