"""`edge::tree_attention`: a few new tokens, a chain or a tree, attend to a cache and each other.

The cache is a preallocated block of which `length` rows count; whatever lies behind them is never
looked at. It is read as it lies and not written: which of the new rows will stay is only known once
the drafts among them were accepted, so the rows come out, in the cache's own format, for the caller
to copy in. They are rounded to that format before anything attends to them. A row is therefore the
same number whether it is new or cached, and how a text was cut into passes changes no token.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sdk.kernels.spec import Case, Tolerance, kernel

STEPS = 127
"""Of int8, on each side of zero."""


@dataclass(frozen=True)
class Sizes:
    """Of one case: tokens, heads of queries and of keys, widths, capacity, length, R."""

    tokens: int
    queries: int
    heads: int
    width: int
    value_width: int
    capacity: int
    length: int
    rotary: int = 0
    dtype: torch.dtype = torch.float32


SIZES = {
    "one token": Sizes(1, 4, 2, 64, 64, 200, 131, 64),
    "a tree, bf16": Sizes(8, 6, 2, 64, 64, 150, 150, 64, torch.bfloat16),
    "a tree, int8": Sizes(8, 6, 2, 64, 64, 150, 149, 64, torch.int8),
    "ragged": Sizes(5, 9, 3, 40, 72, 37, 33, 16),
    "ragged, int8": Sizes(3, 3, 3, 33, 17, 20, 19, 32, torch.int8),
    "ragged, bf16": Sizes(3, 3, 1, 33, 17, 300, 290, 0, torch.bfloat16),
    "many rows": Sizes(30, 6, 2, 32, 32, 70, 70, 32),
    "many tokens": Sizes(140, 2, 1, 32, 32, 16, 11),
    "wide": Sizes(2, 2, 1, 256, 256, 140, 135, 128),
    "chunks": Sizes(2, 3, 3, 64, 64, 1100, 1061, 64),
    "an empty cache": Sizes(4, 2, 1, 16, 16, 24, 0, 8),
    "no capacity": Sizes(3, 2, 1, 16, 16, 0, 0, 8),
    "no tokens": Sizes(0, 2, 1, 16, 16, 24, 20, 8),
    "no heads": Sizes(2, 0, 0, 16, 16, 24, 20),
    "no values": Sizes(2, 2, 1, 16, 0, 24, 20),
    "no keys": Sizes(2, 2, 1, 0, 8, 24, 20),
}
BF16 = Tolerance(rms=4e-3, worst=8e-3)
"""In float64 the reference rounds no row to bfloat16."""


def _cases(rng: np.random.Generator) -> Iterator[Case]:
    for name, sizes in SIZES.items():
        yield _case(rng, name, sizes)
    sizes = Sizes(6, 4, 2, 32, 32, 300, 280, 32)
    yield _case(rng, "a window", sizes, window=50)
    yield _case(rng, "a window within the new tokens", sizes, window=2)
    yield _case(rng, "a cap", sizes, softcap=1.5)
    yield _case(rng, "all of it", Sizes(6, 4, 2, 32, 24, 60, 57, 16, torch.int8), 0.4, 3.0, 20)
    case = _case(rng, "blind", Sizes(3, 2, 1, 16, 16, 8, 0))
    case.tensors[7][1] = False  # type: ignore[index]
    yield case
    yield from _hostile(rng)


def _hostile(rng: np.random.Generator) -> Iterator[Case]:
    """Values that are no numbers, where all tokens see them."""
    for value in (float("nan"), float("inf"), float("-inf"), 1e30):
        for place, axis in (("query", 0), ("past key", 3), ("past value", 4)):
            case = _case(rng, f"{value} in a {place}", Sizes(3, 4, 2, 32, 32, 150, 140))
            case.tensors[axis][1, 1, 5] = value  # type: ignore[index]
            yield case
    case = _case(rng, "no numbers in int8", Sizes(3, 4, 2, 32, 32, 50, 40, 0, torch.int8))
    case.tensors[1][0, 0, 3] = float("nan")  # type: ignore[index]
    case.tensors[2][0, 0, 3] = float("inf")  # type: ignore[index]
    yield case


def _case(
    rng: np.random.Generator,
    name: str,
    sizes: Sizes,
    scale: float = 0.25,
    softcap: float = 0.0,
    window: int = 0,
) -> Case:
    tokens, capacity = sizes.tokens, sizes.capacity
    query = _normal(rng, tokens, sizes.queries, sizes.width)
    key, value = (_normal(rng, tokens, sizes.heads, w) for w in (sizes.width, sizes.value_width))
    past = [_normal(rng, sizes.heads, capacity, w) for w in (sizes.width, sizes.value_width)]
    scales: list[Tensor] = []
    if sizes.dtype == torch.int8:
        past = [(rows * 40).round().clamp(-STEPS, STEPS) for rows in past]
        scales = [_normal(rng, sizes.heads, capacity).abs() / 40 for _ in range(2)]
    for rows in (*past, *scales):  # what nobody may look at
        rows[:, sizes.length :] = 99.0 if sizes.dtype == torch.int8 else float("nan")
    parents = [int(rng.integers(-1, i)) if i else -1 for i in range(tokens)]
    mask, depths = ancestors(parents)
    angles = _normal(rng, tokens, sizes.rotary // 2).repeat(1, 2)
    tensors = (
        query, key, value, *(rows.to(sizes.dtype) for rows in past),
        torch.tensor([sizes.length]), sizes.length + depths, mask,
        angles.cos(), angles.sin(), *scales,
    )  # fmt: skip
    tolerance = BF16 if sizes.dtype == torch.bfloat16 else None
    attributes = {"scale": scale, "softcap": softcap, "window": window}
    return Case(name, tensors, attributes, tolerance)


def _normal(rng: np.random.Generator, *shape: int) -> Tensor:
    return torch.from_numpy(rng.standard_normal(shape, np.float32))


def ancestors(parents: list[int]) -> tuple[Tensor, Tensor]:
    """The mask [W, W] of a tree, -1 the parent of its roots, and the depth [W] of each token."""
    mask = torch.eye(len(parents), dtype=torch.bool)
    depths = torch.zeros(len(parents), dtype=torch.long)
    for node, parent in enumerate(parents):
        if parent >= 0:
            mask[node] |= mask[parent]
            depths[node] = depths[parent] + 1
    return mask, depths


@kernel("edge::tree_attention", version=1, sample=_cases, tolerance=Tolerance(rms=2e-6, worst=5e-6))
def tree_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    past_key: Tensor,
    past_value: Tensor,
    length: Tensor,
    positions: Tensor,
    mask: Tensor,
    cos: Tensor | None = None,
    sin: Tensor | None = None,
    key_scale: Tensor | None = None,
    value_scale: Tensor | None = None,
    scale: float = 1.0,
    softcap: float = 0.0,
    window: int = 0,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Attention [W, Hq, E] of W tokens, and the rows that they add to the cache.

    query [W, Hq, D], key [W, H, D], value [W, H, E]: as projections make them; H divides Hq
    past_key [H, P, D], past_value [H, P, E]: of float32, bfloat16 or int8, P the capacity
    length [1]: of the cached tokens, int64; row r of the cache is at position r
    positions [W]: of the new tokens, int64; a window is counted in them
    mask [W, W]: which of the new tokens each one sees; all see the cache
    cos, sin [W, R]: queries and keys are turned by them in their first R values, of which i and
        i + R / 2 are a pair (RoFormer, equation 34, in Llama's order); where they are left out,
        nothing is turned
    key_scale, value_scale [H, P]: a row of int8 counts in steps of its scale
    scale: of scores; softcap: scores s become softcap * tanh(s / softcap), where it is not 0
    window: a token sees what lies less than this many positions back, where it is not 0

    Returns the attention, rows of keys [H, W, D] and of values [H, W, E] in the cache's dtype, and
    their scales [H, W], 1 but for int8: the greatest absolute value of a row over 127. A token that
    sees nothing gets zeros. Not a number in a row is one to all that see the row; in values, it may
    be to other new tokens too, whose weight for it is 0.
    """
    tokens, heads = query.shape[0], key.shape[1]
    turned_query, turned_key = (_turned(x, cos, sin) for x in (query, key))
    key_rows, key_scales, new_keys = _kept(turned_key.transpose(0, 1), past_key.dtype)
    value_rows, value_scales, new_values = _kept(value.transpose(0, 1), past_value.dtype)
    rows = torch.arange(past_key.shape[1], device=query.device)
    there = rows < length
    keys = _past(past_key, key_scale, there, query.dtype)
    values = _past(past_value, value_scale, there, query.dtype)
    seen = torch.cat([there.expand(tokens, -1), mask], 1)
    if window > 0:
        seen = seen & (positions[:, None] - torch.cat([rows, positions])[None] < window)
    groups = query.shape[1] // max(heads, 1)
    grouped = (
        turned_query.reshape(tokens, heads, groups, query.shape[2]).permute(1, 2, 0, 3) * scale
    )
    scores = torch.cat([grouped @ k.transpose(1, 2)[:, None] for k in (keys, new_keys)], -1)
    if softcap > 0:
        scores = torch.tanh(scores / softcap) * softcap
    weights = torch.softmax(scores.masked_fill(~seen, float("-inf")), -1)
    weights = weights.masked_fill(~seen.any(1)[:, None], 0)
    past, new = torch.split(weights, [past_key.shape[1], tokens], -1)
    mixed = past @ values[:, None] + new @ new_values[:, None]
    output = mixed.permute(2, 0, 1, 3).reshape(tokens, heads * groups, value.shape[2])
    return output.contiguous(), key_rows, value_rows, key_scales, value_scales


def _turned(rows: Tensor, cos: Tensor | None, sin: Tensor | None) -> Tensor:
    """[W, heads, D] with the first R values rotated by each token's angles."""
    if cos is None or sin is None:
        return rows
    turned, rest = torch.split(rows, [cos.shape[1], rows.shape[2] - cos.shape[1]], -1)
    first, second = torch.chunk(turned, 2, -1) if cos.shape[1] else (turned, turned)
    across = torch.cat([-second, first], -1) if cos.shape[1] else turned
    return torch.cat([turned * cos[:, None] + across * sin[:, None], rest], -1)


def _kept(rows: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Rows [H, W, D] in the cache's format, their scales [H, W], and the numbers that they are."""
    ones = torch.ones(rows.shape[:2], dtype=rows.dtype, device=rows.device)
    if dtype != torch.int8:
        kept = rows.to(dtype).clone(memory_format=torch.contiguous_format)
        return kept, ones, kept.to(rows.dtype)
    scale = torch.nn.functional.pad(rows.abs(), (0, 1)).amax(-1) / STEPS
    steps = torch.round(rows / scale[..., None])
    steps = torch.where(steps.abs() <= STEPS, steps, 0)  # of 0 / 0 and infinities too
    return steps.to(dtype).contiguous(), scale, steps * scale[..., None]


def _past(rows: Tensor, scale: Tensor | None, there: Tensor, dtype: torch.dtype) -> Tensor:
    """The cache [H, P, D] as numbers, zeros where it has no rows yet."""
    values = rows.to(dtype)
    if scale is not None:
        values = values * scale[..., None]
    return torch.where(there[:, None], values, 0)
