"""`edge::dag_decode`: a path through the graph of a Directed Acyclic Transformer.

Greedy and lookahead decoding (Huang et al., DA-Transformer, arXiv:2205.07459, section 3.4), Viterbi
and joint Viterbi decoding (Shao et al., arXiv:2210.05193, equations 7 to 10), as DASpeech
(arXiv:2310.07403) uses them: two algorithms, each with and without the emissions.

Vertices are 0 to n - 1; a path starts at 0, goes up, and ends at n - 1. Where Viterbi finds no path
of an allowed length, the path is 0, n - 1 (our reading; the papers leave it open).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from sdk.kernels.spec import Case, Tolerance, kernel

DECODERS = (
    {"viterbi": False, "emission_weight": 0.0},
    {"viterbi": False, "emission_weight": 1.0},
    {"viterbi": True, "emission_weight": 0.0, "length_power": 1.0, "longest": 1.0},
    {"viterbi": True, "emission_weight": 1.0, "length_power": 0.5, "longest": 0.5},
    {"viterbi": True, "emission_weight": 1.0},
)


def _cases(rng: np.random.Generator) -> Iterator[Case]:
    for batch, size in [(0, 4), (2, 1), (3, 2), (2, 5), (3, 19), (2, 40), (1, 85)]:
        lengths = rng.integers(max(size // 2, 1), size + 1, batch)
        tensors = graph(rng, batch, size, lengths)
        for setting in DECODERS:
            yield Case(f"{batch}x{size} {setting}", tensors, setting)
    yield from _odd_cases(rng)


def _odd_cases(rng: np.random.Generator) -> Iterator[Case]:
    links, emissions, _ = graph(rng, 4, 33, np.full(4, 33))
    grid = (torch.round(links * 4) / 4, torch.round(emissions * 4) / 4)
    short = torch.tensor([0, 1, 2, 33])
    full = torch.full((4,), 33)
    bad_link, bad_emission = links.clone(), emissions.clone()
    bad_link[1, 5, 9], bad_link[2, 7, 8] = torch.nan, torch.inf
    bad_emission[3, 20] = torch.nan
    sparse = links.where(torch.from_numpy(rng.random((4, 33, 33)) < 0.1), -torch.inf)
    below = links.clone()
    below[:, 8, 3] = torch.nan
    for setting in DECODERS:
        yield Case(f"ties {setting}", (*grid, full), setting)
        yield Case(f"lengths {setting}", (links, emissions, short), setting)
        yield Case(f"dead ends {setting}", (sparse, emissions, full), setting)
        yield Case(f"NaN below the diagonal {setting}", (below, emissions, full), setting)
        if setting["viterbi"]:
            yield Case(f"NaN {setting}", (bad_link, bad_emission, full), setting)


def graph(
    rng: np.random.Generator, batch: int, size: int, lengths: np.ndarray
) -> tuple[Tensor, Tensor, Tensor]:
    """Links that are normalised over later vertices, and log-probabilities of the best tokens."""
    scores = torch.from_numpy(2 * rng.standard_normal((batch, size, size), np.float32))
    ends = torch.from_numpy(lengths.astype(np.int64))
    places = torch.arange(size)
    later = (places > places[:, None]) & (places < ends[:, None, None])
    links = torch.log_softmax(scores.where(later, -torch.inf), -1).where(later, -torch.inf)
    emissions = -torch.from_numpy(rng.exponential(1.0, (batch, size)).astype(np.float32))
    return links, emissions, ends


@kernel("edge::dag_decode", version=1, sample=_cases, tolerance=Tolerance(rms=1e-5, worst=1e-6))
def dag_decode(
    links: Tensor,
    emissions: Tensor,
    lengths: Tensor,
    viterbi: bool = False,
    emission_weight: float = 1.0,
    length_power: float = 0.0,
    longest: float = 0.25,
) -> tuple[Tensor, Tensor, Tensor]:
    """The path, how many vertices it has, and its score.

    links: [B, L, L] log-probability of going from vertex j to k; only k > j is read
    emissions: [B, L] log-probability of each vertex's best token
    lengths: int64 [B], vertices of each graph, at most L
    viterbi: the best path as a whole; else from vertex to vertex, to the best next one
    emission_weight: 1 for lookahead and joint Viterbi, 0 for greedy and plain Viterbi
    length_power: Viterbi divides the score of a path by (vertices between its ends) to this power
    longest: Viterbi takes paths of at most this share of the vertices between its ends, at least 1

    Returns int64 [B, L], filled up with -1; int64 [B]; and [B]: links on the path plus weighted
    emissions of all its vertices but the last. With Viterbi, a graph with a NaN or plus infinity
    has the path 0, n - 1 and the score NaN.
    """
    size = links.shape[1]
    weighted = emission_weight * emissions if emission_weight != 0 else torch.zeros_like(emissions)
    if size < 2:
        return _short(weighted, lengths)
    places = torch.arange(size, device=links.device)
    later = (places > places[:, None]) & (places < lengths[:, None, None])
    edges = torch.where(later, links, -torch.inf)
    if viterbi:
        path, score = _best_path(edges, weighted, lengths, length_power, longest)
    else:
        path, score = _step_by_step(edges, weighted, lengths)
    inside = path >= 0
    return (
        _first(path, inside, size),
        inside.sum(1),
        torch.where(lengths > 1, score, _start(weighted, lengths)),
    )


def _short(weighted: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    path = torch.where(lengths[:, None] > 0, 0, -1).expand(weighted.shape).clone()
    return path, lengths.clone(), torch.where(lengths > 0, weighted.sum(1), 0.0)


def _start(weighted: Tensor, lengths: Tensor) -> Tensor:
    """What a path scores that has no link."""
    return torch.where(lengths > 0, weighted[:, 0], 0.0)


def _first(path: Tensor, inside: Tensor, size: int) -> Tensor:
    """The vertices of each row in order, then -1 up to `size`."""
    place = torch.where(inside, inside.long().cumsum(1) - 1, size)
    room = torch.full((path.shape[0], size + 1), -1, dtype=path.dtype, device=path.device)
    return room.scatter(1, place, path)[:, :-1]


def _step_by_step(edges: Tensor, weighted: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Vertices by steps [B, L], -1 where there is none, and the score."""
    batch, size = weighted.shape
    places = torch.arange(size, device=edges.device)
    # behind the last vertex and where nothing leads on: the next one
    later = (places > places[:, None]) & (places < lengths[:, None, None])
    scored = torch.where(later, edges + weighted[:, None], -torch.inf)
    ahead = torch.where(later & (scored == -torch.inf), torch.finfo(edges.dtype).min, scored)
    after = ahead.argmax(2)
    vertex = torch.where(lengths > 0, 0, -1)
    score, path = weighted[:, 0], [vertex]
    for _ in range(size - 1):
        going = (vertex >= 0) & (vertex < lengths - 1)
        at = vertex.clamp(min=0)[:, None]
        to = after.gather(1, at)
        link = edges[torch.arange(batch, device=edges.device), at[:, 0], to[:, 0]]
        passed = torch.where(to[:, 0] < lengths - 1, weighted.gather(1, to)[:, 0], 0.0)
        score = torch.where(going, score + link + passed, score)
        vertex = torch.where(going, to[:, 0], -1)
        path.append(vertex)
    return torch.stack(path, 1), score


def _best_path(
    edges: Tensor, weighted: Tensor, lengths: Tensor, power: float, longest: float
) -> tuple[Tensor, Tensor]:
    """As `_step_by_step`, by dynamic programming over the number of vertices between the ends."""
    batch, size = weighted.shape
    places, rows = torch.arange(size, device=edges.device), torch.arange(batch, device=edges.device)
    last = (lengths - 1).clamp(min=0)
    between = (places > 0) & (places < last[:, None])
    inner = torch.where(between[:, :, None] & between[:, None, :], edges, -torch.inf)
    to_last = torch.where(between, edges[rows, :, last], -torch.inf)
    most = (lengths.double() * longest).floor().long().clamp(min=1)
    state = torch.where(between, (edges[:, 0] + weighted[:, :1]) + weighted, -torch.inf)
    direct = weighted[:, 0] + edges[rows, 0, last]
    best, score = torch.full_like(direct, -torch.inf), direct
    steps, origins, ends = torch.zeros_like(lengths), [], []
    for t in range(1, min(size - 1, max(int(size * longest), 1) + 1)):
        ending = state + to_last
        found = ending.amax(1)
        better = (found / t**power > best) & (t <= most)
        best, score = torch.where(better, found / t**power, best), torch.where(better, found, score)
        steps = torch.where(better, t, steps)
        ends.append(ending.argmax(1))
        arriving = state[:, :, None] + inner
        origins.append(arriving.argmax(1))
        state = arriving.amax(1) + weighted
    broken = _broken(edges, weighted, lengths)
    steps = torch.where(broken, 0, steps)
    path = _backwards(steps, ends, origins, lengths)
    return path, torch.where(broken, torch.nan, score)


def _broken(edges: Tensor, weighted: Tensor, lengths: Tensor) -> Tensor:
    inside = torch.arange(weighted.shape[1], device=edges.device) < lengths[:, None]
    wrong = torch.where(inside, weighted, 0.0)
    bad = (wrong.isnan() | (wrong == torch.inf)).any(1)
    return bad | (edges.isnan() | (edges == torch.inf)).flatten(1).any(1)


def _backwards(steps: Tensor, ends: list[Tensor], origins: list[Tensor], lengths: Tensor) -> Tensor:
    """Vertices [B, L], from the last one back to the first; their places stay in order."""
    vertex = torch.where(lengths > 1, lengths - 1, -1)
    path = [vertex]
    current = vertex
    for t in range(len(ends), 0, -1):
        before = origins[t - 1].gather(1, current.clamp(min=0)[:, None])[:, 0]
        current = torch.where(steps == t, ends[t - 1], torch.where(steps > t, before, current))
        path.append(torch.where(steps >= t, current, -1))
    path.append(torch.where(lengths > 0, 0, -1))
    return torch.stack(path[::-1], 1)
