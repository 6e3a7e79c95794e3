"""`edge::group_norm_silu` in Core ML: one product for norm and weight, and SiLU as one operator.

coremltools makes a batch norm of a product and a sum with constants, whose epsilon of 1e-5 beside a
variance of 1 is an error of 5e-6 (`fuse_elementwise_to_batchnorm`). A factor that is computed, the
scale of the group times the weight, is no such constant.
"""

from __future__ import annotations

from typing import Any

import numpy as np


def composite(
    mb: Any, x: Any, weight: Any, bias: Any, *, groups: int, eps: float, silu: bool
) -> Any:
    """x [N, C, ...] of any sizes, in groups of channels [N, groups, C / groups, positions]."""
    shape = mb.shape(x=x)
    images = mb.slice_by_index(x=shape, begin=[0], end=[1])
    channels = weight.shape[0] // groups
    parts = mb.concat(values=[images, np.array([groups, channels, -1], np.int32)], axis=0)
    grouped = mb.reshape(x=x, shape=parts)
    centred = mb.sub(x=grouped, y=mb.reduce_mean(x=grouped, axes=[2, 3], keep_dims=True))
    spread = mb.reduce_mean(x=mb.mul(x=centred, y=centred), axes=[2, 3], keep_dims=True)
    scale = mb.rsqrt(x=spread, epsilon=np.float32(eps))
    places = [1, groups, channels, 1]
    factor = mb.mul(x=scale, y=mb.reshape(x=weight, shape=places))
    scaled = mb.add(x=mb.mul(x=centred, y=factor), y=mb.reshape(x=bias, shape=places))
    result = mb.reshape(x=scaled, shape=shape)
    return mb.silu(x=result) if silu else result
