"""Each verifier's output law is the target's, to the last digits, over all drafts and chances."""

from __future__ import annotations

import numpy as np
import pytest
from enumeration import Replay, law

from sdk.errors import InputError
from sdk.runtimes.generation.contracts import (
    DETERMINISTIC,
    GREEDY,
    IID,
    ROOT,
    SAMPLINGS,
    WITHOUT_REPLACEMENT,
    DraftTree,
    Row,
    Verdict,
)
from sdk.runtimes.generation.siblings import draw
from sdk.runtimes.generation.verifiers import NAMES, check_pair, choose, named

PAIRS = [("sample_match", sampling, n) for sampling in SAMPLINGS for n in (1, 2, 3)] + [
    ("speculative_sampling", IID, 1),
    ("speculative_sampling", WITHOUT_REPLACEMENT, 1),
    ("speculative_sampling", GREEDY, 1),
    ("rrs", IID, 1),
    ("rrs", IID, 2),
    ("rrs", IID, 3),
    ("rrs_without_replacement", WITHOUT_REPLACEMENT, 2),
    ("rrs_without_replacement", WITHOUT_REPLACEMENT, 3),
    ("k_seq", IID, 2),
    ("k_seq", IID, 3),
    ("greedy_draft", GREEDY, 2),
    ("greedy_draft", GREEDY, 3),
    *(("optimal_transport", sampling, n) for sampling in SAMPLINGS for n in (1, 2, 3)),
]
V = 5


class Rows:
    """The same rows p for all nodes at a depth."""

    def __init__(self, tree: DraftTree, rows: list[Row]) -> None:
        self.depths, self.rows = [*tree.depths(), 0], rows  # the root is at -1

    def row(self, node: int) -> Row:
        return self.rows[self.depths[node]]

    def best(self, node: int) -> int:
        return int(self.row(node).argmax())


def distribution(rng: np.random.Generator, zeros: int = 0) -> Row:
    row = rng.dirichlet(np.full(V, 0.7))
    row[rng.permutation(V)[:zeros]] = 0
    return row / row.sum()


def one(token: int) -> Row:
    return np.eye(V)[token]


def cases() -> list[tuple[Row, Row]]:
    rng = np.random.default_rng(7)
    same = distribution(rng)
    free = [(distribution(rng, a), distribution(rng, b)) for a in (0, 2) for b in (0, 2)]
    apart = np.array([0.5, 0.5, 0, 0, 0]), np.array([0, 0, 0.2, 0.3, 0.5])
    return [*free, (same, same), apart, (one(2), distribution(rng)), (distribution(rng), one(1))]


def first_token(name: str, sampling: str, n: int, p: Row, q: Row, chance: Replay) -> int:
    tokens = draw(q, n, sampling=sampling, chance=chance, position=0)
    tree = DraftTree(tuple(tokens), (ROOT,) * len(tokens), sampling, (q,) + (None,) * len(tokens))
    verdict = named(name).verify(tree, Rows(tree, [p, p]), chance, 0)
    check_counts(tree, verdict)
    return tree.tokens[verdict.path[0]] if verdict.path else verdict.token


def check_counts(tree: DraftTree, verdict: Verdict) -> None:
    assert len(verdict.path) <= verdict.evaluated <= len(tree)
    leaf = verdict.path[-1] if verdict.path else ROOT
    assert verdict.bonus == (not tree.children(leaf))


@pytest.mark.parametrize(("name", "sampling", "n"), PAIRS)
def test_one_node(name: str, sampling: str, n: int) -> None:
    if name == "optimal_transport":
        pytest.importorskip("scipy")
    for p, q in cases():
        found = law(lambda chance, p=p, q=q: first_token(name, sampling, n, p, q, chance))  # type: ignore[misc]
        got = np.array([found.get(token, 0.0) for token in range(V)])
        assert abs(got - p).max() < 1e-12
        assert not got[p == 0].any()


@pytest.mark.parametrize(
    ("name", "sampling", "n"), [pair for pair in PAIRS if pair[2] == 2 and pair[1] != DETERMINISTIC]
)
def test_two_levels(name: str, sampling: str, n: int) -> None:
    """A tree whose children have children: the pair of first tokens has the product law."""
    if name == "optimal_transport":
        pytest.importorskip("scipy")
    rng = np.random.default_rng(3)
    p, q = (
        [row[:3] / row[:3].sum() for row in (distribution(rng), distribution(rng))] for _ in "pq"
    )

    def two_tokens(chance: Replay) -> tuple[int, int]:
        tokens = draw(q[0], n, sampling=sampling, chance=chance, position=0)
        below = draw(q[1], n, sampling=sampling, chance=chance, position=1, lane=1)
        parents = [ROOT] * len(tokens) + [1] * len(below)  # under the second sibling
        probs = [q[0], *([None] * len(parents))]
        probs[2] = q[1]
        tree = DraftTree((*tokens, *below), tuple(parents), sampling, tuple(probs))
        verdict = named(name).verify(tree, Rows(tree, [*p, p[0]]), chance, 0)
        check_counts(tree, verdict)
        told = [*(tree.tokens[node] for node in verdict.path), verdict.token]
        told += [chance.draw(p[1], 1)] if len(told) == 1 else []
        return told[0], told[1]

    found = law(two_tokens)
    got = np.array([[found.get((a, b), 0.0) for b in range(3)] for a in range(3)])
    assert abs(got - np.outer(*p)).max() < 1e-12


def test_greedy_match_follows_the_best_token() -> None:
    rows = [one(2), one(0), one(1)]
    tree = DraftTree((1, 2, 0, 4), (ROOT, ROOT, 1, 2))
    verdict = named("greedy_match").verify(tree, Rows(tree, rows), Replay(()), 0)
    assert verdict == Verdict((1, 2), 1, 4, bonus=False)
    chain = DraftTree.chain([2, 0])
    verdict = named("greedy_match").verify(chain, Rows(chain, rows), Replay(()), 0)
    assert verdict == Verdict((0, 1), 1, 2, bonus=True)


class Zero:
    """The unluckiest generator: every number is 0."""

    def accept(self, probability: float, position: int, lane: int) -> bool:
        return probability > 0.0

    def draw(self, row: Row, position: int, lane: int = 0) -> int:
        return int(np.flatnonzero(row)[0])


@pytest.mark.parametrize("name", ["speculative_sampling", "rrs", "k_seq", "greedy_draft"])
def test_a_number_of_zero_accepts_nothing_impossible(name: str) -> None:
    p, q = one(3), one(1)
    sampling = GREEDY if name == "greedy_draft" else IID
    tree = DraftTree((1,), (ROOT,), sampling, (q, None))
    assert named(name).verify(tree, Rows(tree, [p, p]), Zero(), 0).token == 3


def test_registry_and_choice() -> None:
    assert set(NAMES) == {name for name, _, _ in PAIRS} | {"greedy_match"}
    for sampling in SAMPLINGS:
        for greedy in (True, False):
            for chain in (True, False):
                verifier = choose(sampling, greedy=greedy, chain=chain)
                check_pair(sampling, verifier, greedy=greedy)
                assert verifier.lossless
    with pytest.raises(InputError, match="no verifier 'typical'"):
        named("typical")


@pytest.mark.parametrize(
    ("name", "sampling"),
    [("rrs", WITHOUT_REPLACEMENT), ("k_seq", GREEDY), ("greedy_draft", IID)],
)
def test_wrong_pairs_are_refused(name: str, sampling: str) -> None:
    with pytest.raises(InputError, match="is not exact"):
        check_pair(sampling, named(name), greedy=False)


def test_greedy_match_needs_temperature_zero() -> None:
    with pytest.raises(InputError, match="most probable"):
        check_pair(DETERMINISTIC, named("greedy_match"), greedy=False)


def test_a_sampled_draft_without_its_distribution_is_refused() -> None:
    tree = DraftTree((1,), (ROOT,), IID)
    with pytest.raises(InputError, match="without the distribution"):
        named("rrs").verify(tree, Rows(tree, [one(0), one(0)]), Zero(), 0)


def test_siblings_are_refused_by_the_verifier_of_chains() -> None:
    tree = DraftTree((1, 2), (ROOT, ROOT), IID, (one(1), None, None))
    with pytest.raises(InputError, match="verifies chains"):
        named("speculative_sampling").verify(tree, Rows(tree, [one(0)] * 2), Zero(), 0)
