"""`edge::dag_forward`: a target's likelihood under a Directed Acyclic Transformer, and its place.

The sum over all paths (Huang et al., DA-Transformer, arXiv:2205.07459, equations 5 to 7) and the
expected hidden state of each target token (Fang et al., DASpeech, arXiv:2310.07403, equations 8 to
11), by the forward and the backward algorithm:

    a[0, 0] = match[0, 0];   a[i, k] = match[i, k] + log sum_j exp(a[i-1, j] + links[j, k])
    b[m-1, n-1] = 0;         b[i, j] = log sum_k exp(links[j, k] + match[i+1, k] + b[i+1, k])
    log p = a[m-1, n-1];     posterior[i, j] = exp(a[i, j] + b[i, j] - log p)

Here b leaves out the emission at its own vertex, which the official code of DASpeech counts twice:
it normalises forward times backward, both of which hold it.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from sdk.kernels.spec import Case, Tolerance, kernel


def _cases(rng: np.random.Generator) -> Iterator[Case]:
    for batch, targets, size, width in [
        (0, 2, 4, 3), (1, 1, 1, 1), (2, 2, 2, 5), (3, 3, 7, 4), (2, 7, 33, 17), (2, 20, 64, 40),
        (1, 30, 85, 33),
    ]:  # fmt: skip
        tensors = example(rng, batch, targets, size, width)
        yield Case(f"{batch}x{targets}x{size}x{width}", tensors)
        yield Case(f"{batch}x{targets}x{size}", (*tensors[:4], None))
    yield from _odd_cases(rng)


def _odd_cases(rng: np.random.Generator) -> Iterator[Case]:
    links, match, lengths, targets, hidden = example(rng, 5, 9, 35, 20)
    short = torch.tensor([0, 1, 5, 35, 20]), torch.tensor([4, 1, 6, 0, 3])
    yield Case("impossible", (links, match, *short, hidden))
    far = Tolerance(rms=1e-4, worst=1e-4)  # of log-likelihoods near -1000
    yield Case("unlikely", (links, 40 * match, lengths, targets, hidden), tolerance=far)
    sparse = links.where(torch.from_numpy(rng.random(links.shape) < 0.3), -torch.inf)
    revealed = match.clone()
    revealed[:, 2] = -torch.inf
    revealed[:, 2, 4] = 0.0
    yield Case("revealed", (sparse, revealed, lengths, targets, hidden))
    below, bad = links.clone(), match.clone()
    below[:, 8, 3] = torch.nan
    yield Case("NaN below the diagonal", (below, match, lengths, targets, hidden))
    bad[1, 3, 5] = torch.nan
    yield Case("NaN", (links, bad, lengths, targets, hidden))


def example(
    rng: np.random.Generator, batch: int, targets: int, size: int, width: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Normalised links, emissions of a target, lengths at which there are paths, hidden states."""
    lengths = torch.from_numpy(rng.integers((size + targets + 1) // 2, size + 1, batch))
    many = torch.from_numpy(rng.integers((targets + 1) // 2, targets + 1, batch))
    many = torch.where(lengths > 1, many.clamp(min=min(2, targets)), many.clamp(max=1))
    scores = torch.from_numpy(2 * rng.standard_normal((batch, size, size), np.float32))
    places = torch.arange(size)
    later = (places > places[:, None]) & (places < lengths[:, None, None])
    links = torch.log_softmax(scores.where(later, -torch.inf), -1).where(later, -torch.inf)
    match = -torch.from_numpy(rng.exponential(2.0, (batch, targets, size)).astype(np.float32))
    hidden = torch.from_numpy(rng.standard_normal((batch, size, width), np.float32))
    return links, match, lengths, many, hidden


@kernel("edge::dag_forward", version=1, sample=_cases, tolerance=Tolerance(rms=1e-5, worst=1e-5))
def dag_forward(
    links: Tensor,
    match: Tensor,
    lengths: Tensor,
    target_lengths: Tensor,
    hidden: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Log-likelihood, posterior of the vertices and expected hidden states.

    links: [B, L, L] log-probability of going from vertex j to k; only k > j is read
    match: [B, M, L] log-probability of each target token at each vertex
    lengths: int64 [B], vertices of each graph, at most L
    target_lengths: int64 [B], tokens of each target, at most M; the first is at vertex 0
    hidden: [B, L, D] the vertices' hidden states

    Returns [B]; [B, M, L]; and [B, M, D], the posterior times `hidden`, with D = 0 where it is left
    out. A target with no path has log-likelihood minus infinity and a posterior of zeros, as have
    tokens behind the end of a target.
    """
    batch, most, size = match.shape
    places, rows = torch.arange(size, device=links.device), torch.arange(batch, device=links.device)
    inside = places < lengths[:, None]
    possible = (lengths > 0) & (target_lengths > 0)
    if size == 0 or most == 0:
        total = torch.full_like(match.sum((1, 2)), -torch.inf)
        return total, torch.zeros_like(match), _expected(torch.zeros_like(match), hidden)
    later = (places > places[:, None]) & inside[:, None]
    edges = torch.where(later, links, -torch.inf)
    last = (lengths - 1).clamp(min=0), (target_lengths - 1).clamp(min=0)
    forward = _forward(edges, torch.where(inside[:, None], match, -torch.inf))
    backward = _backward(edges, torch.where(inside[:, None], match, -torch.inf), *last)
    total = torch.where(possible, forward[rows, last[1], last[0]], -torch.inf)
    real = torch.arange(most, device=links.device) < target_lengths[:, None]
    kept = real[:, :, None] & inside[:, None] & (total != -torch.inf)[:, None, None]
    found = torch.where(kept, forward + backward - total[:, None, None], -torch.inf)
    posterior = torch.exp(found)
    return total, posterior, _expected(posterior, hidden)


def _expected(posterior: Tensor, hidden: Tensor | None) -> Tensor:
    batch, most, _ = posterior.shape
    if hidden is None:
        return posterior.new_zeros(batch, most, 0)
    # a vertex that cannot be where the token is adds nothing, whatever its state is
    return posterior @ torch.where((posterior > 0).any(1)[:, :, None], hidden, 0.0)


def _forward(edges: Tensor, match: Tensor) -> Tensor:
    """a [B, M, L]; a token can be no earlier than at the vertex of its own number."""
    most, size = match.shape[1:]
    places = torch.arange(size, device=match.device)
    state = torch.where(places == 0, match[:, 0], -torch.inf)
    states = [state]
    for i in range(1, most):
        arriving = _log_sum(state[:, i - 1 :, None] + edges[:, i - 1 :], 1)
        state = torch.where(places >= i, arriving + match[:, i], -torch.inf)
        states.append(state)
    return torch.stack(states, 1)


def _backward(edges: Tensor, match: Tensor, last: Tensor, last_target: Tensor) -> Tensor:
    """b [B, M, L], from each target's own end."""
    most, size = match.shape[1:]
    places = torch.arange(size, device=match.device)
    end = torch.where(places == last[:, None], 0.0, -torch.inf).to(match.dtype)
    state = torch.full_like(end, -torch.inf)
    states = []
    for i in range(most - 1, -1, -1):
        if i + 1 < most:
            state = _log_sum(edges + (match[:, i + 1] + state)[:, None], 2)
        state = torch.where((last_target == i)[:, None], end, state)
        states.append(state)
    return torch.stack(states[::-1], 1)


def _log_sum(x: Tensor, dim: int) -> Tensor:
    """logsumexp, with a gradient of 0 where all is minus infinity."""
    if x.shape[dim] == 0:
        return torch.full_like(x.sum(dim), -torch.inf)
    peak = x.detach().amax(dim, keepdim=True)
    peak = torch.where(peak.abs() == torch.inf, 0.0, peak)
    total = torch.exp(x - peak).sum(dim)
    nothing = total == 0
    return torch.where(
        nothing, -torch.inf, torch.log(torch.where(nothing, 1.0, total)) + peak.squeeze(dim)
    )
