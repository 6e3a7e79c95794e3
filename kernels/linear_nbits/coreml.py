"""`edge::linear_nbits` in Core ML: weights stay packed in the file, by its own compressed forms.

The activations go on their grid of int8 as floats, which hold all of its values; the product is
that of floats. Weights of 4 and 8 bits are integers with scales in groups, those of 2 and 3 bits
indices of a palette of integers, to which scales are applied.
"""

from __future__ import annotations

from typing import Any

import numpy as np

# What a block that counts is above: in float16 this is 0.
LEAST = np.nextafter(np.float32(2.0**-118), np.float32(0))


def composite(
    mb: Any,
    x: Any,
    weight: Any,
    scales: Any,
    zeros: Any = None,
    bias: Any = None,
    *,
    columns: int,
    bits: int,
    group: int,
) -> Any:
    """Weights, scales and zero points are constants, which deployment to iOS18 needs."""
    from sdk.kernels.linear_nbits.packing import step
    from sdk.kernels.linear_nbits.spec import block_of

    if any(t is not None and t.val is None for t in (weight, scales, zeros)):
        raise NotImplementedError("weights that are not constant")
    columns = columns or weight.shape[0] * 16
    integers, points = _integers(weight.val, bits, columns), _by_column(zeros, columns)
    dense = _dense(mb, integers, _by_column(scales, columns), points, bits)
    return product(mb, quantized(mb, x, block_of(group, step(bits)), 127.0), x, dense, bias)


def quantized(mb: Any, x: Any, block: int, limit: float) -> Any:
    """x on the grid of each block: its largest value over `limit` is a step; rows [-1, K]."""
    blocks = mb.reshape(x=x, shape=[-1, x.shape[-1] // block, block])
    most = mb.reduce_max(x=mb.abs(x=blocks), axes=[2], keep_dims=True)
    used = mb.greater(x=most, y=LEAST)
    steps = mb.real_div(x=mb.select(cond=used, a=most, b=np.float32(limit)), y=np.float32(limit))
    kept = mb.mul(x=blocks, y=mb.cast(x=used, dtype="fp32"))
    q = mb.round(x=mb.mul(x=kept, y=mb.real_div(x=np.float32(1), y=steps)))
    odd = mb.sub(x=most, y=most)  # no number where a value is none or infinite
    return mb.reshape(x=mb.add(x=mb.mul(x=q, y=steps), y=odd), shape=[-1, x.shape[-1]])


def product(mb: Any, rows: Any, x: Any, weight: Any, bias: Any) -> Any:
    """Rows [-1, K] times a weight [N, K], with the axes that x has."""
    given = {} if bias is None else {"bias": bias}
    made = mb.linear(x=rows, weight=weight, **given)
    if x.rank == 2:
        return made
    columns = np.array([weight.shape[0]], np.int32)
    if x.rank == 1:
        return mb.reshape(x=made, shape=columns)
    before = mb.slice_by_index(x=mb.shape(x=x), begin=[0], end=[x.rank - 1])
    return mb.reshape(x=made, shape=mb.concat(values=[before, columns], axis=0))


def _integers(packed: Any, bits: int, columns: int) -> Any:
    import torch

    from sdk.kernels.linear_nbits.packing import unpack_weight

    octets = torch.from_numpy(np.array(packed).astype(np.uint8))
    return unpack_weight(octets, bits)[:columns].numpy()


def _by_column(values: Any, columns: int) -> Any:
    """[tiles, groups, 16] -> [columns, groups]."""
    if values is None:
        return None
    return values.val.transpose(0, 2, 1).reshape(-1, values.shape[1])[:columns]


def _dense(mb: Any, integers: Any, scales: Any, zeros: Any, bits: int) -> Any:
    """(integers - zeros) * scales, in the file as integers of `bits` bits."""
    from coremltools.converters.mil.frontend import _utils
    from coremltools.converters.mil.mil import types

    points = np.full(scales.shape, 1 << bits - 1) if zeros is None else zeros
    scale = scales.astype(np.float32)
    if bits in (4, 8):
        kind = types.type_mapping.string_to_nptype(f"uint{bits}")
        return mb.constexpr_blockwise_shift_scale(
            data=integers.astype(kind), scale=scale, offset=points.astype(kind)
        )
    palette = np.arange(1 << bits, dtype=np.uint8).reshape(1, 1, -1, 1)
    values = _utils._construct_constexpr_lut_op(integers.astype(np.uint8), palette)
    return mb.constexpr_blockwise_shift_scale(
        data=values, scale=scale, offset=points.astype(np.uint8)
    )
