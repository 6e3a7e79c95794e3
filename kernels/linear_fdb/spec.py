"""`edge::linear_fdb`: activations times DB-LLM's flexible dual binarization, two binary planes.

    w = a1 * b1 + a2 * b2,   b1, b2 in {0, 1},   a1, a2 learned, one of each for a group of weights

(2402.11960, section 3.2), so that y = a1 * (b1 . x) + a2 * (b2 . x). The activations go on a
grid of 7 bits, block by block: less than a thirtieth of the error that 2-bit weights have, and sums
of four then fit a byte. The sums under a plane are exact integers:

    step[m, b]  = max |x[m, b]| / 63               float32
    q[m, b, k]  = round_half_even(x[m, b, k] * (1 / step[m, b]))
    s_i[m, n, b] = sum of q[m, b, k] over the k whose bit b_i[n, k] is set
    y[m, n]     = sum_b step[m, b] * (a1[n, g(b)] * s_1[m, n, b] + a2[n, g(b)] * s_2[m, n, b])
                  + bias[n]

A block is the largest multiple of 32 up to 128 that divides the group. Blocks whose largest value
is below 2^-118 count as zeros. A row with a NaN or an infinity gives NaN.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sdk.errors import InputError
from sdk.kernels.linear_fdb.packing import TILE, UNIT, pack_planes, pack_scales, unpack_planes
from sdk.kernels.linear_nbits.spec import block_of, to_int8
from sdk.kernels.samples import odd_values
from sdk.kernels.spec import Case, Tolerance, kernel

if TYPE_CHECKING:
    import numpy as np

LIMIT = 63.0


def sample(rng: np.random.Generator) -> Iterator[Case]:
    """Rows x groups, ragged columns, planes without bits; empty and non-finite inputs."""

    def case(
        name: str, rows: tuple[int, ...], columns: int, depth: int, group: int,
        *, bias: bool = False, half: bool = False, density: float = 0.4,
    ) -> Case:  # fmt: skip
        x = torch.from_numpy(rng.standard_normal((*rows, depth), dtype="float32"))
        planes = torch.from_numpy(rng.random((2, columns, depth)) < density)
        scales = torch.from_numpy(rng.uniform(-0.1, 0.1, (2, columns, depth // group)))
        scales = pack_scales(scales.to(torch.float16 if half else torch.float32), planes)
        tensors = (
            x, pack_planes(planes), scales,
            torch.from_numpy(rng.standard_normal(columns, dtype="float32")) if bias else None,
        )  # fmt: skip
        return Case(name, tensors, {"columns": columns, "group": group})

    for rows in (1, 2, 3, 4, 7, 19):
        yield case(f"{rows} rows", (rows,), 170, 192, 64, bias=rows % 2 == 0)
    for group in (32, 96, 128, 384):
        yield case(f"group {group}", (2,), 45, 384, group, half=True)
    yield case("planes without bits", (3,), 64, 512, 64, density=0.0005)
    yield case("all bits", (3,), 64, 256, 128, density=1.0)
    yield case("one row of one axis", (), 64, 64, 32)
    yield case("batches", (2, 3), 32, 64, 32)
    yield case("no rows", (0,), 16, 32, 32)
    yield case("no columns", (2,), 0, 32, 32)
    yield case("no depth", (2,), 16, 0, 32, bias=True)
    yield from odd_values(case("odd values", (9,), 40, 128, 64))


@kernel("edge::linear_fdb", version=1, sample=sample, tolerance=Tolerance(2e-5, 2e-5))
def linear_fdb(
    x: Tensor,
    planes: Tensor,
    scales: Tensor,
    bias: Tensor | None = None,
    columns: int = 0,
    group: int = 64,
) -> Tensor:
    """Float [..., K] times two binary planes [N, K] with their scales, plus a bias: [..., N].

    planes: uint8 [tiles, 4 * K], of `pack_planes`; tiles hold 16 columns
    scales: float32 or float16 [tiles, K / group, 2, 16], of `pack_scales`
    bias: [N]
    columns: N; 0 means all that the tiles hold
    """
    _check(x, planes, group)
    block = block_of(group, UNIT)
    q, steps = to_int8(x, block, LIMIT)
    columns = columns or planes.shape[0] * TILE
    blocks = x.shape[-1] // block
    bits = unpack_planes(planes)[:, :columns].to(x.dtype).reshape(2, columns, blocks, block)
    sums = torch.einsum("...bk,pnbk->...npb", q, bits)
    by_group = scales.permute(0, 3, 2, 1).flatten(0, 1)[:columns].to(x.dtype)
    by_block = by_group.repeat_interleave(group // block, 2)
    made = (sums * by_block).sum(-2) * steps.transpose(-1, -2)
    made = made.sum(-1)
    return made if bias is None else made + bias


def _check(x: Tensor, planes: Tensor, group: int) -> None:
    if group < 1 or group % UNIT or x.shape[-1] % group or planes.shape[1] != 4 * x.shape[-1]:
        raise InputError(
            "edge::linear_fdb got planes that do not fit its activations.",
            expected=f"a group that is a multiple of {UNIT} and divides K, planes [tiles, 4 * K]",
            got=f"group {group}, x {list(x.shape)}, planes {list(planes.shape)}",
        )
