"""Binary planes in the order in which the native code of `edge::linear_fdb` reads them.

Columns are in tiles of 16; 32 neighbouring weights of a column are a word, and 16 words a vector:
see `linear_fdb.h`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sdk.errors import InputError
from sdk.extras import require

if TYPE_CHECKING:
    from torch import Tensor

TILE = 16
UNIT = 32


def pack_planes(planes: Tensor) -> Tensor:
    """Bool or 0/1 [2, N, K] -> uint8 [tiles, 4 * K]."""
    torch = require("torch", purpose="packing weights")
    if planes.dim() != 3 or planes.shape[0] != 2 or planes.shape[2] % UNIT:
        raise InputError(
            "These planes cannot be packed.",
            expected=f"[2, N, K], K a multiple of {UNIT}",
            got=list(planes.shape),
        )
    depth = planes.shape[2]
    tiled = _tiled(planes.to(torch.uint8))
    tiles = tiled.shape[1]
    bits = tiled.reshape(2, tiles, TILE, depth // UNIT, 4, 8)
    weights = 1 << torch.arange(8, dtype=torch.uint8)
    octets: Tensor = (bits * weights).sum(-1, dtype=torch.uint8)  # [2, tiles, 16, units, 4]
    return octets.permute(1, 3, 0, 2, 4).reshape(tiles, 4 * depth)


def unpack_planes(packed: Tensor) -> Tensor:
    """The inverse: uint8 [tiles, 4 * K] -> uint8 0/1 [2, tiles * 16, K], with the padding."""
    torch = require("torch", purpose="unpacking weights")
    tiles, depth = packed.shape[0], packed.shape[1] // 4
    octets = packed.reshape(tiles, depth // UNIT, 2, TILE, 4).permute(2, 0, 3, 1, 4)
    wide = octets.to(torch.int32)  # torch.onnx gets shifts of bytes wrong
    bits: Tensor = torch.stack([wide >> i & 1 for i in range(8)], dim=-1)
    return bits.reshape(2, tiles * TILE, depth).to(packed.dtype)


def pack_scales(scales: Tensor, planes: Tensor) -> Tensor:
    """[2, N, groups] -> [tiles, groups, 2, 16]; zero where a plane has no bit in the group.

    A product with no bit is zero whatever its scale. A plane without any in a tile's group is not
    even read.
    """
    groups = planes.reshape(*scales.shape, planes.shape[2] // max(scales.shape[2], 1))
    used = scales.where(groups.bool().any(-1), scales.new_zeros(()))
    return _tiled(used).permute(1, 3, 0, 2).contiguous()


def _tiled(values: Tensor) -> Tensor:
    """[2, N, n] -> [2, tiles, 16, n], filled up with zeros."""
    torch = require("torch", purpose="packing weights")
    rows, width = values.shape[1:]
    filled: Tensor = torch.nn.functional.pad(values, (0, 0, 0, -rows % TILE))
    return filled.reshape(2, -(-rows // TILE), TILE, width)
