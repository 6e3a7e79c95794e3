"""Weights in the order in which the native code of `edge::linear_nbits` reads them.

Columns are in tiles of 16. A quad is 4 neighbouring weights of one column; 64 bytes hold a quad of
each column of a tile. What is packed, is packed across quads, so that a shift and a mask give whole
vectors: see `linear_nbits.h`, which draws it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sdk.errors import InputError
from sdk.extras import require

if TYPE_CHECKING:
    from torch import Tensor

TILE = 16
BITS = (2, 3, 4, 8)


def step(bits: int) -> int:
    """What groups of weights are multiples of."""
    return 32 if bits == 3 else 16


def pack_weight(q: Tensor, bits: int) -> Tensor:
    """Unsigned integers uint8 [N, K] below 2^bits -> uint8 [tiles, 2 * bits * K]."""
    torch = require("torch", purpose="packing weights")
    if bits not in BITS or q.dtype != torch.uint8 or q.dim() != 2 or q.shape[1] % step(bits):
        raise InputError(
            "These weights cannot be packed.",
            expected=f"uint8 [N, K], bits in {BITS}, K a multiple of {step(bits)}",
            got=f"{q.dtype} {list(q.shape)}, bits {bits}",
        )
    rows = _tiled(q)
    tiles = rows.reshape(len(rows), TILE, q.shape[1] // 4, 4).transpose(1, 2)  # [., quads, 16, 4]
    if bits == 8:
        return tiles.flatten(1).contiguous()
    if bits != 3:
        return _across(tiles, bits).flatten(1)
    low = _across(tiles & 3, 2).reshape(len(rows), q.shape[1] // 32, 2, TILE, 4)
    high = _across(tiles >> 2, 1).unsqueeze(2)
    packed: Tensor = torch.cat([low, high], dim=2).flatten(1)
    return packed


def unpack_weight(packed: Tensor, bits: int) -> Tensor:
    """The inverse: uint8 [tiles, 2 * bits * K] -> uint8 [tiles * 16, K], with the padding."""
    tiles = packed.shape[0]
    vectors = packed.reshape(tiles, packed.shape[1] // 64, TILE, 4)
    if bits == 8:
        quads = vectors
    elif bits != 3:
        quads = _apart(vectors, bits)
    else:
        units = vectors.reshape(tiles, packed.shape[1] // 192, 3, TILE, 4)
        low = _apart(units[:, :, :2].flatten(1, 2), 2)
        quads = low | _apart(units[:, :, 2], 1) << 2
    return quads.transpose(1, 2).reshape(tiles * TILE, quads.shape[1] * 4)


def pack_groups(values: Tensor) -> Tensor:
    """Scales or zero points [N, groups] -> [tiles, groups, 16]."""
    return _tiled(values).transpose(1, 2).contiguous()


def _tiled(values: Tensor) -> Tensor:
    """[N, n] -> [tiles, 16, n], filled up with zeros."""
    torch = require("torch", purpose="packing weights")
    rows, width = values.shape
    filled: Tensor = torch.nn.functional.pad(values, (0, 0, 0, -rows % TILE))
    return filled.reshape(-(-rows // TILE), TILE, width)


def _across(tiles: Tensor, bits: int) -> Tensor:
    """[tiles, quads, 16, 4] -> [tiles, quads / (8 / bits), 16, 4]: the first in the lowest bits."""
    count = 8 // bits
    parts = tiles.reshape(len(tiles), tiles.shape[1] // count, count, TILE, 4)
    packed = parts[:, :, 0]
    for i in range(1, count):
        packed = packed | parts[:, :, i] << (bits * i)
    return packed


def _apart(packed: Tensor, bits: int) -> Tensor:
    """The inverse of `_across`."""
    torch = require("torch", purpose="unpacking weights")
    mask = (1 << bits) - 1
    wide = packed.to(torch.int32)  # torch.onnx gets shifts of bytes wrong
    parts = [wide >> (bits * i) & mask for i in range(8 // bits)]
    made: Tensor = torch.stack(parts, dim=2).flatten(1, 2).to(packed.dtype)
    return made
