"""The references of the graph kernels against all paths of small graphs, one by one."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations, pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

from sdk.kernels.dag_decode.spec import DECODERS, dag_decode, graph
from sdk.kernels.dag_forward.spec import dag_forward, example

SIZES = (2, 3, 5, 7)


def paths(size: int, between: int) -> Iterator[tuple[int, ...]]:
    """All ways from the first to the last vertex with so many vertices between them."""
    for inner in combinations(range(1, size - 1), between):
        yield (0, *inner, size - 1)


def length_of(links: Tensor, path: tuple[int, ...]) -> float:
    return float(sum(links[j, k] for j, k in pairwise(path)))


def a_graph(size: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    links, emissions, lengths = graph(np.random.default_rng(seed), 1, size, np.array([size]))
    return links.double(), emissions.double(), lengths


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("weight", [0.0, 1.0])
@pytest.mark.parametrize(("power", "longest"), [(0.0, 1.0), (1.0, 1.0), (0.5, 0.5)])
def test_viterbi_finds_the_best_path(
    size: int, weight: float, power: float, longest: float
) -> None:
    for seed in range(5):
        links, emissions, lengths = a_graph(size, seed)

        def value(path: tuple[int, ...], links: Tensor = links, e: Tensor = emissions) -> float:
            return length_of(links[0], path) + weight * float(e[0, list(path[:-1])].sum())

        most = max(1, int(longest * size))
        every = [p for t in range(1, min(most, size - 2) + 1) for p in paths(size, t)]
        best = max(every or [(0, size - 1)], key=lambda p: value(p) / max(len(p) - 2, 1) ** power)
        path, count, score = dag_decode.reference(
            links, emissions, lengths, viterbi=True, emission_weight=weight, length_power=power,
            longest=longest,
        )  # fmt: skip
        assert path[0, : count[0]].tolist() == list(best)
        assert float(score[0]) == pytest.approx(value(best), abs=1e-12)


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_lookahead_goes_to_the_best_next_vertex(weight: float) -> None:
    for seed in range(5):
        links, emissions, lengths = a_graph(9, seed)
        path, count, score = dag_decode.reference(links, emissions, lengths, False, weight)
        found = path[0, : count[0]].tolist()
        assert (found[0], found[-1]) == (0, 8)
        for at, to in pairwise(found):
            ahead = links[0, at] + weight * emissions[0]
            assert to == at + 1 + int(ahead[at + 1 :].argmax())
        best = dag_decode.reference(
            links, emissions, lengths, viterbi=True, emission_weight=weight, longest=1.0
        )[2]
        between = len(found) > 2
        assert not between or float(score[0]) <= float(best[0]) + 1e-12


@pytest.mark.parametrize("setting", DECODERS)
def test_paths_go_up_and_end_at_the_last_vertex(setting: dict[str, float]) -> None:
    rng = np.random.default_rng(3)
    lengths = np.array([0, 1, 2, 30, 41])
    path, count, _ = dag_decode.reference(*graph(rng, 5, 41, lengths), **setting)
    for row, many, length in zip(path, count, lengths, strict=True):
        found = row[:many].tolist()
        assert found == sorted(set(found))
        assert found == [] if length == 0 else (found[0], found[-1]) == (0, length - 1)
        assert (row[many:] == -1).all()


@pytest.mark.parametrize("size", SIZES)
def test_forward_is_the_sum_over_all_paths(size: int) -> None:
    for targets in range(2, size + 1):
        rng = np.random.default_rng(targets)
        links, match, _, _, hidden = (t.double() for t in example(rng, 1, targets, size, 3))
        full = torch.tensor([size]), torch.tensor([targets])
        links = torch.log_softmax(links.nan_to_num(neginf=-3.0), -1)
        every = list(paths(size, targets - 2))
        tokens = range(targets)
        chances = torch.tensor(
            [length_of(links[0], path) + float(match[0, tokens, path].sum()) for path in every],
            dtype=torch.float64,
        )
        total, posterior, expected = dag_forward.reference(links, match, *full, hidden)
        assert float(total[0]) == pytest.approx(float(chances.logsumexp(0)), abs=1e-12)
        want = torch.zeros(targets, size, dtype=torch.float64)
        for path, chance in zip(every, chances.softmax(0), strict=True):
            want[tokens, path] += chance
        torch.testing.assert_close(posterior[0], want, atol=1e-12, rtol=0)
        torch.testing.assert_close(posterior.sum(2), torch.ones(1, targets, dtype=torch.float64))
        torch.testing.assert_close(expected[0], want @ hidden[0], atol=1e-12, rtol=0)


def test_gradient_of_the_likelihood_is_the_posterior() -> None:
    links, match, lengths, targets, _ = example(np.random.default_rng(1), 3, 5, 12, 1)
    match = match.double().requires_grad_()
    total, posterior, _ = dag_forward.reference(links.double(), match, lengths, targets)
    total.sum().backward()
    torch.testing.assert_close(match.grad, posterior.detach(), atol=1e-12, rtol=0)


def test_gradient_flows_through_unreachable_vertices() -> None:
    tensors = [t.double() for t in example(np.random.default_rng(1), 1, 3, 6, 2)]
    links, match, hidden = (tensors[i].requires_grad_() for i in (0, 1, 4))
    lengths, targets = torch.tensor([6]), torch.tensor([3])
    total, _, expected = dag_forward(links, match, lengths, targets, hidden)
    (total.sum() + expected.sum()).backward()
    assert all(t.grad is not None and torch.isfinite(t.grad).all() for t in (match, hidden))
    assert torch.isfinite(links.grad).all()


def test_a_target_without_a_path_is_impossible() -> None:
    links, match, _, _, hidden = example(np.random.default_rng(2), 2, 6, 6, 2)
    total, posterior, expected = dag_forward.reference(
        links, match, torch.tensor([4, 0]), torch.tensor([6, 2]), hidden
    )
    assert (total == -torch.inf).all()
    assert not posterior.any()
    assert not expected.any()
