"""`edge::sample_verify`: sample from rows of logits and test a drafted chain against them.

Speculative sampling (Leviathan et al., arXiv:2211.17192; Chen et al., arXiv:2302.01318) where the
draft was drawn from known distributions; else the draft is accepted where it is what is drawn. Each
random number has its place, so that the same numbers give the same tokens, drafted or not.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from sdk.kernels.spec import Case, Tolerance, kernel

ROUNDING = 1e-12
"""The share of top-p by which sums of probabilities may be off."""


def _cases(rng: np.random.Generator) -> Iterator[Case]:
    settings: list[dict[str, float]] = [
        {},
        {"top_k": 5},
        {"top_p": 0.8},
        {"min_p": 0.1},
        {"top_k": 40, "top_p": 0.9},
    ]
    for rows, vocabulary in [(1, 1), (2, 7), (4, 64), (3, 333), (5, 1031), (2, 5003)]:
        for setting in settings:
            name = f"{rows}x{vocabulary} {setting}"
            given = {"temperature": 0.7, **setting}
            tensors = _chain(rng, rows, vocabulary)
            yield Case(name, tensors, given)
            yield Case(f"{name}, matched", tensors[:3], given)
    yield from _odd_cases(rng)


def _odd_cases(rng: np.random.Generator) -> Iterator[Case]:
    logits, tokens, uniforms, proposals = _chain(rng, 4, 100)
    yield Case("ties", (logits.round(), tokens, uniforms, proposals), {"top_p": 0.77, "top_k": 9})
    yield Case("flat", (torch.zeros(2, 3000), tokens[:1], uniforms[:2]), {"top_p": 0.9})
    yield Case("double", (logits.double(), tokens, uniforms, proposals), {"min_p": 0.01})
    banned = logits.clone()
    banned[:, ::3] = -torch.inf
    yield Case("banned", (banned, tokens, uniforms, proposals), {"top_k": 80})
    broken = logits.clone()
    broken[2, 50] = torch.nan
    yield Case("NaN", (broken, tokens, uniforms, proposals))
    yield Case("no such token", (logits, tokens - 1000, uniforms, proposals))
    yield Case("peaked", (logits * 1e4, tokens, uniforms, proposals), {"top_p": 0.5})
    yield Case("no vocabulary", (torch.zeros(2, 0), tokens[:1], uniforms[:2]))
    zeros = torch.zeros_like(uniforms)
    yield Case("uniforms of 0", (banned, tokens, zeros, proposals))
    yield Case("uniforms near 1", (banned, tokens, zeros + (1 - 2.0**-53), proposals))
    yield Case("float32", (logits, tokens, uniforms.float(), proposals.float()), {"top_p": 0.9})


def _chain(
    rng: np.random.Generator, rows: int, vocabulary: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A draft from nearly the distributions that it is tested against."""
    logits = torch.from_numpy(3 * rng.standard_normal((rows, vocabulary), np.float32))
    noise = torch.from_numpy(rng.standard_normal((rows - 1, vocabulary)))
    proposals = torch.softmax(logits[:-1] / 0.7 + 0.2 * noise, -1)
    tokens = [int(rng.choice(vocabulary, p=row / row.sum())) for row in proposals.numpy()]
    uniforms = torch.from_numpy(rng.random((rows, 2)))
    return logits, torch.tensor(tokens, dtype=torch.int64), uniforms, proposals


@kernel("edge::sample_verify", version=1, sample=_cases, tolerance=Tolerance(rms=0, worst=0))
def sample_verify(
    logits: Tensor,
    tokens: Tensor,
    uniforms: Tensor,
    proposals: Tensor | None = None,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Tokens of a round, and how many of them were drafted.

    logits: float32 or float64 [R, V], after the last committed token and after each drafted one
    tokens: int64 [R - 1], the draft
    uniforms: float64 [R, 2] in [0, 1): for the draw, and for the test, at each position
    proposals: float64 [R - 1, V], what each drafted token was drawn from; both may be float32, for
        engines that have no float64
    temperature, top_k, top_p, min_p: as in Hugging Face, in this order; 0, 1 and 0 leave all in

    Returns int64 [R], the accepted tokens, the one that ends the round, and -1 behind it; and
    int64 [1]. A row whose largest logit is no finite number draws -1.
    """
    rows, vocabulary = logits.shape
    places = torch.arange(rows, device=logits.device)
    if vocabulary == 0:
        return torch.full_like(places, -1), torch.zeros_like(places[:1])
    p = distributions(logits, temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    known = torch.isfinite(p[:, :1]).squeeze(1)
    if proposals is None:
        emitted = torch.where(known, pick(p, uniforms[:, 0]), -1)
        accepted = known[:-1] & (emitted[:-1] == tokens)
    else:
        accepted = known[:-1] & (uniforms[:-1, 1] < ratios(p[:-1], proposals, tokens))
        rest = torch.cat([residual(p[:-1], proposals), p[-1:]])
        emitted = torch.where(known, pick(rest, uniforms[:, 0]), -1)
    count = ((~accepted).long().cumsum(0) == 0).sum(0, keepdim=True)
    drafted = torch.cat([tokens, emitted[-1:]])
    found = torch.where(places < count, drafted, torch.where(places == count, emitted, -1))
    return found, count


def distributions(
    logits: Tensor, temperature: float, *, top_k: int, top_p: float, min_p: float
) -> Tensor:
    """[R, V] to distributions in float64; a row without a finite maximum becomes NaN."""
    scores = logits.double() / temperature
    largest = scores.max(-1, keepdim=True).values
    scores = torch.where(torch.isfinite(largest), scores, torch.nan)
    if 0 < top_k < scores.shape[-1]:
        kth = torch.topk(scores, top_k).values[:, -1:]
        scores = torch.where(scores < kth, -torch.inf, scores)
    row = torch.softmax(scores, -1)
    if top_p < 1:
        row = _only(row, _nucleus(row, top_p * (1 - ROUNDING)) | row.isnan())
    if min_p > 0:
        row = _only(row, ~(row < min_p * row.max(-1, keepdim=True).values))
    return row


def _nucleus(row: Tensor, mass: float) -> Tensor:
    """The fewest most probable tokens before which less than `mass` lies; equals by their ids."""
    ranked = torch.sort(row, dim=-1, descending=True).values
    inside = ranked.cumsum(-1) - ranked < mass
    least = ranked.gather(-1, (inside.long().sum(-1, keepdim=True) - 1).clamp(min=0))
    ties = (inside & (ranked == least)).long().sum(-1, keepdim=True)
    same = row == least
    return (row > least) | (same & (same.long().cumsum(-1) <= ties))


def _only(row: Tensor, kept: Tensor) -> Tensor:
    left = torch.where(kept, row, 0.0)
    return left / left.sum(-1, keepdim=True)


def pick(row: Tensor, u: Tensor) -> Tensor:
    """The token whose interval of the cumulative sum contains u times the total, for each row."""
    cumulative = row.cumsum(-1)
    token = (cumulative <= u[:, None] * cumulative[:, -1:]).sum(-1)
    from_behind = (row > 0).flip(-1).long().argmax(-1)
    return torch.minimum(token, row.shape[-1] - 1 - from_behind)


def ratios(p: Tensor, q: Tensor, tokens: Tensor) -> Tensor:
    """min(1, p / q) at the tokens, where 0 / 0 and no such token are 0."""
    inside = (tokens >= 0) & (tokens < p.shape[-1])
    place = torch.where(inside, tokens, 0)[:, None]
    above, below = p.gather(-1, place).squeeze(-1), q.gather(-1, place).squeeze(-1)
    possible = inside & (above > 0) & (below > 0)
    return torch.where(possible, torch.clamp(above / below, max=1.0), 0.0)


def residual(p: Tensor, q: Tensor) -> Tensor:
    """norm((p - q)+), or p where nothing is left."""
    left = torch.clamp(p - q, min=0.0)
    total = left.sum(-1, keepdim=True)
    return torch.where(total > 0, left / total, p)
