"""`edge::linear_nbits`: activations times weights of 2, 3, 4 or 8 bits, one scale for each group.

The activations go on an int8 grid, block by block, as ONNX Runtime's `MatMulNBits` has them with
`accuracy_level=4`, and are multiplied as integers:

    step[m, b]  = max |x[m, b]| / 127              float32
    q[m, b, k]  = round_half_even(x[m, b, k] * (1 / step[m, b]))
    d[m, n, b]  = sum_k (w[n, b, k] - zero[n, g(b)]) * q[m, b, k]      an integer
    y[m, n]     = sum_b scale[n, g(b)] * step[m, b] * d[m, n, b] + bias[n]

A block is the largest multiple of 16 (of 32 with 3 bits) up to 128 that divides the group. Blocks
whose largest value is below 2^-118 count as zeros. A row with a NaN or an infinity gives NaN.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sdk.errors import InputError
from sdk.kernels.linear_nbits.packing import (
    BITS,
    TILE,
    pack_groups,
    pack_weight,
    step,
    unpack_weight,
)
from sdk.kernels.samples import odd_values
from sdk.kernels.spec import Case, Tolerance, kernel

if TYPE_CHECKING:
    import numpy as np

MOST = 128
SMALLEST = 2.0**-118


def block_of(group: int, multiple: int) -> int:
    """How many activations share a step where `group` weights share a scale."""
    return next(size for size in range(MOST, 0, -multiple) if group % size == 0)


def to_int8(x: Tensor, block: int, limit: float = 127.0) -> tuple[Tensor, Tensor]:
    """[..., K] -> integers [..., K / block, block] and steps [..., K / block, 1], in x's dtype."""
    blocks = x.to(torch.float32).reshape(*x.shape[:-1], x.shape[-1] // block, block)
    most = blocks.abs().amax(-1, keepdim=True)
    wrong = ~(most < torch.inf)
    used = (most >= SMALLEST) & ~wrong
    steps = torch.where(used, most, limit) / limit
    q = torch.round(torch.where(used, blocks, 0.0) * (1.0 / steps))
    steps = torch.where(used, steps, torch.where(wrong, torch.nan, 0.0))
    return q.to(x.dtype), steps.to(x.dtype)


def sample(rng: np.random.Generator) -> Iterator[Case]:
    """Bits x groups x rows, ragged columns, zero points, biases; empty and non-finite inputs."""

    def case(
        name: str, rows: tuple[int, ...], columns: int, depth: int, bits: int, group: int,
        *, zeros: bool = False, bias: bool = False, half: bool = False,
    ) -> Case:  # fmt: skip
        groups = depth // group
        x = torch.from_numpy(rng.standard_normal((*rows, depth), dtype="float32"))
        q = torch.from_numpy(rng.integers(0, 1 << bits, (columns, depth), dtype="uint8"))
        scales = torch.from_numpy(rng.uniform(-0.1, 0.1, (columns, groups)).astype("float32"))
        points = torch.from_numpy(rng.integers(0, 1 << bits, (columns, groups), dtype="uint8"))
        tensors = (
            x, pack_weight(q, bits), pack_groups(scales.half() if half else scales),
            pack_groups(points) if zeros else None,
            torch.from_numpy(rng.standard_normal(columns, dtype="float32")) if bias else None,
        )  # fmt: skip
        return Case(name, tensors, {"columns": columns, "bits": bits, "group": group})

    for bits in BITS:
        for rows in (1, 2, 3, 5, 8, 19):
            yield case(f"w{bits}, {rows} rows", (rows,), 50, 192, bits, 32, bias=rows % 2 == 0)
        for group in (step(bits), 64, 96, 192):
            yield case(f"w{bits}, group {group}", (4,), 33, 192, bits, group, half=True)
        yield case(f"w{bits}, zero points", (7,), 130, 256, bits, 128, zeros=True, bias=True)
    yield case("one row of one axis", (), 64, 64, 4, 32)
    yield case("batches", (2, 3), 16, 64, 4, 32)
    yield case("one long group", (2,), 8, 1056, 8, 1056, zeros=True)
    yield case("no rows", (0,), 16, 32, 4, 32)
    yield case("no columns", (2,), 0, 32, 4, 32)
    yield case("no depth", (2,), 16, 0, 4, 32, bias=True)
    yield from odd_values(case("odd values", (9,), 40, 128, 4, 32))


@kernel("edge::linear_nbits", version=1, sample=sample, tolerance=Tolerance(2e-5, 2e-5))
def linear_nbits(
    x: Tensor,
    weight: Tensor,
    scales: Tensor,
    zeros: Tensor | None = None,
    bias: Tensor | None = None,
    columns: int = 0,
    bits: int = 4,
    group: int = 32,
) -> Tensor:
    """Float [..., K] times packed integers [N, K], plus a bias: float [..., N].

    weight: uint8 [tiles, 2 * bits * K], of `pack_weight`; tiles hold 16 columns
    scales: float32 or float16 [tiles, K / group, 16]
    zeros: uint8 [tiles, K / group, 16]; without them every zero point is 2^(bits - 1)
    bias: [N]
    columns: N; 0 means all that the tiles hold
    """
    _check(x, weight, bits, group)
    block = block_of(group, step(bits))
    q, steps = to_int8(x, block)
    columns = columns or weight.shape[0] * TILE
    w = unpack_weight(weight, bits)[:columns].to(x.dtype)
    w = w.reshape(columns, x.shape[-1] // group, group)
    w = w - (float(1 << bits - 1) if zeros is None else _by_column(zeros, columns, x))
    w = w.reshape(columns, x.shape[-1] // block, block)
    sums = torch.einsum("...bk,nbk->...nb", q, w) * steps.transpose(-1, -2)
    by_block = _by_column(scales, columns, x).squeeze(-1).repeat_interleave(group // block, 1)
    made = (sums * by_block).sum(-1)
    return made if bias is None else made + bias


def _by_column(values: Tensor, columns: int, x: Tensor) -> Tensor:
    """[tiles, groups, 16] -> [columns, groups, 1], in x's dtype."""
    return values.transpose(1, 2).flatten(0, 1)[:columns].to(x.dtype).unsqueeze(-1)


def _check(x: Tensor, weight: Tensor, bits: int, group: int) -> None:
    if bits not in BITS or group < 1 or group % step(bits if bits in BITS else 4):
        raise InputError(
            "edge::linear_nbits has no such weights.",
            expected=f"bits in {BITS}, a group that is a multiple of 16 (of 32 with 3 bits)",
            got=f"bits {bits}, group {group}",
        )
    if x.shape[-1] % group or weight.shape[1] != 2 * bits * x.shape[-1]:
        raise InputError(
            "edge::linear_nbits got a weight that does not fit its activations.",
            expected=f"a last axis that {group} divides, and weight [tiles, 2 * bits * K]",
            got=f"x {list(x.shape)}, weight {list(weight.shape)}, bits {bits}",
        )
