"""`edge::linear_fdb` in Core ML: both planes are one index of two bits.

It picks from a palette for each group of weights of a column: 0, a1, a2 and their sum, which is the
weight itself. So a plane and its scales take what they take in the packed form.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from sdk.kernels.linear_nbits.coreml import product, quantized


def composite(
    mb: Any,
    x: Any,
    planes: Any,
    scales: Any,
    bias: Any = None,
    *,
    columns: int,
    group: int,
) -> Any:
    """Planes and scales are constants, which deployment to iOS18 needs."""
    from coremltools.converters.mil.frontend import _utils

    from sdk.kernels.linear_fdb.packing import UNIT
    from sdk.kernels.linear_fdb.spec import LIMIT
    from sdk.kernels.linear_nbits.spec import block_of

    if planes.val is None or scales.val is None:
        raise NotImplementedError("weights that are not constant")
    columns = columns or planes.shape[0] * 16
    first, second = _scales(scales.val, columns)
    palette = np.stack([np.zeros_like(first), first, second, first + second], -1)[..., None]
    weight = _utils._construct_constexpr_lut_op(_indices(planes.val, columns), palette)
    return product(mb, quantized(mb, x, block_of(group, UNIT), LIMIT), x, weight, bias)


def _scales(values: Any, columns: int) -> Any:
    """[tiles, groups, 2, 16] -> twice [columns, groups]."""
    ordered = values.astype(np.float32).transpose(2, 0, 3, 1)
    return ordered.reshape(2, -1, values.shape[1])[:, :columns]


def _indices(packed: Any, columns: int) -> Any:
    """Of each weight [columns, K]: the bit of the first plane, and twice that of the second."""
    import torch

    from sdk.kernels.linear_fdb.packing import unpack_planes

    bits = unpack_planes(torch.from_numpy(np.array(packed).astype(np.uint8))).numpy()
    return (bits[0] | bits[1] << 1)[:columns]
