"""Translations of compressed weights: integers with scales, and palettes, kept as they are.

Core ML has integers of 8 and 4 bits, and palettes of 1 to 8 bits. Weights of 2 bits become a
palette of the four integers, to which the scales are applied. Importing this registers them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from coremltools.converters.mil import Builder as mb  # noqa: N813
from coremltools.converters.mil.frontend._utils import (
    _construct_constexpr_dequant_op,
    _construct_constexpr_lut_op,
)
from coremltools.converters.mil.frontend.torch.ops import _get_inputs

from sdk.compilers.mil.frontend import translates


@translates("quantized_decomposed::dequantize_per_channel_group")
def dequantize_per_channel_group(context: Any, node: Any) -> None:
    """Integers [N, K] times scales [N, K / group]."""
    q, scale, zero_point, low, high = _get_inputs(context, node)[:5]
    if q.val is None or scale.val is None or zero_point is not None:
        raise NotImplementedError("groups that are not constant, or have zero points")
    scales = scale.val.astype(np.float32)
    if high.val - low.val < 4:
        palette = np.arange(low.val, high.val + 1, dtype=np.int8).reshape(1, 1, -1, 1)
        indices = (q.val - low.val).astype(np.uint8)
        integers = _construct_constexpr_lut_op(indices, palette)
        value = mb.constexpr_blockwise_shift_scale(data=integers, scale=scales, name=node.name)
    else:
        value = _construct_constexpr_dequant_op(q.val, None, scales, name=node.name)
    context.add(value)


@translates()
def take(context: Any, node: Any) -> None:
    """A palette at constant indices; of anything else, the flat tensor at the indices."""
    table, indices = _get_inputs(context, node, expected=2)
    if table.val is None or indices.val is None:
        flat = mb.reshape(x=table, shape=[-1])
        context.add(mb.gather(x=flat, indices=indices, axis=0, name=node.name))
        return
    palette = table.val.reshape(*(1,) * indices.rank, -1, 1)
    value = _construct_constexpr_lut_op(indices.val.astype(np.uint8), palette, name=node.name)
    context.add(value)
