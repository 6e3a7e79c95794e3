"""The optimum by three routes, each verifier's acceptance by two, and never above the optimum."""

from __future__ import annotations

import numpy as np
import pytest
from enumeration import Replay, law

from sdk.runtimes.generation.bounds import (
    ACCEPTANCE,
    all_within,
    match_acceptance,
    optimal_acceptance,
    rrs_without_replacement_acceptance,
    subset_acceptance,
)
from sdk.runtimes.generation.contracts import (
    DETERMINISTIC,
    GREEDY,
    IID,
    ROOT,
    SAMPLINGS,
    WITHOUT_REPLACEMENT,
    DraftTree,
    Row,
)
from sdk.runtimes.generation.draft_sets import draft_sets
from sdk.runtimes.generation.siblings import draw
from sdk.runtimes.generation.verifiers import named

SAMPLING = {
    "speculative_sampling": IID,
    "rrs": IID,
    "k_seq": IID,
    "rrs_without_replacement": WITHOUT_REPLACEMENT,
    "greedy_draft": GREEDY,
}


def pairs(size: int, count: int = 12) -> list[tuple[Row, Row]]:
    rng = np.random.default_rng(size)
    return [tuple(rng.dirichlet(np.full(size, 0.6), 2)) for _ in range(count)]


def sparse(row: Row, rng: np.random.Generator) -> Row:
    row = row * (rng.random(len(row)) < 0.7)
    return row / row.sum() if row.any() else np.full(len(row), 1 / len(row))


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("n", [1, 2, 3])
def test_the_prefix_rule_is_the_minimum_over_all_sets(sampling: str, n: int) -> None:
    rng = np.random.default_rng(n)
    for p, q in pairs(6):
        for a, b in ((p, q), (sparse(p, rng), q), (p, sparse(q, rng)), (p, p)):
            want = subset_acceptance(a, b, n, sampling)
            assert optimal_acceptance(a, b, n, sampling) == pytest.approx(want, abs=1e-9)


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("n", [1, 2, 3])
def test_the_linear_program_attains_it(sampling: str, n: int) -> None:
    pytest.importorskip("scipy")
    from sdk.runtimes.generation.verifiers.optimal_transport import plan

    for p, q in pairs(5, 4):
        found = sum(row.sum() for row in plan(p, draft_sets(q, n, sampling)).values())
        assert found == pytest.approx(optimal_acceptance(p, q, n, sampling), abs=1e-9)


def test_draws_without_replacement_within_a_prefix() -> None:
    for p, q in pairs(6, 4):
        for row in (q, np.array([1 - 5e-9, *[1e-9] * 5]), p):
            for n in (1, 2, 4):
                sets = draft_sets(row, n, WITHOUT_REPLACEMENT)
                got = all_within(row, n)
                for k in range(6):
                    inside = set(range(k + 1))
                    want = sum(weight for drawn, weight in sets.items() if drawn <= inside)
                    assert got[k] == pytest.approx(want, abs=1e-10)


def accepted(name: str, p: Row, q: Row, n: int) -> float:
    """By enumeration of drafts and chances: how often the emitted token is a sibling."""

    class Rows:
        def row(self, node: int) -> Row:
            return p

        def best(self, node: int) -> int:
            return int(p.argmax())

    def program(chance: Replay) -> bool:
        siblings = draw(q, n, sampling=SAMPLING[name], chance=chance, position=0)
        probs = (q, *[None] * len(siblings))
        tree = DraftTree(tuple(siblings), (ROOT,) * len(siblings), SAMPLING[name], probs)
        return bool(named(name).verify(tree, Rows(), chance, 0).path)

    return law(program).get(True, 0.0)


@pytest.mark.parametrize("name", ACCEPTANCE)
def test_each_formula_is_what_its_verifier_does(name: str) -> None:
    for n in (1,) if name == "speculative_sampling" else (1, 2, 3):
        for p, q in pairs(4, 6):
            told, found = ACCEPTANCE[name](p, q, n), accepted(name, p, q, n)
            if name == "k_seq":
                assert told <= found + 1e-12
            else:
                assert told == pytest.approx(found, abs=1e-12)
            assert found <= optimal_acceptance(p, q, n, SAMPLING[name]) + 1e-9


def test_greedy_drafts_are_verified_optimally() -> None:
    for p, q in pairs(6):
        for n in (1, 2, 3):
            told = ACCEPTANCE["greedy_draft"](p, q, n)
            assert told == pytest.approx(subset_acceptance(p, q, n, GREEDY), abs=1e-12)


def test_matching_accepts_what_the_siblings_hold() -> None:
    for p, q in pairs(5, 4):
        assert match_acceptance(p, q, 2, DETERMINISTIC) == pytest.approx(
            p[np.argsort(-q)[:2]].sum()
        )
        assert match_acceptance(p, q, 1, IID) == pytest.approx(p @ q)


def logits(size: int, noise: float, temperature: float, seed: int) -> tuple[Row, Row]:
    rng = np.random.default_rng(seed)
    target = 2 * rng.normal(size=size)
    draft = target + noise * rng.normal(size=size)
    p, q = (np.exp(row / temperature) for row in (target, draft))
    return p / p.sum(), q / q.sum()


def test_the_order_of_the_verifiers_is_the_papers() -> None:
    """Greedy drafts win where the temperature is low; the optimum is far where it is high."""

    def means(size: int, noise: float, temperature: float, n: int) -> dict[str, float]:
        rows = [logits(size, noise, temperature, seed) for seed in range(12)]
        found = {name: np.mean([f(p, q, n) for p, q in rows]) for name, f in ACCEPTANCE.items()}
        for sampling in (IID, WITHOUT_REPLACEMENT):
            found[sampling] = np.mean([optimal_acceptance(p, q, n, sampling) for p, q in rows])
        return {name: float(value) for name, value in found.items()}

    warm, cold = means(60, 1.5, 1.0, 2), means(60, 2.0, 0.5, 4)
    for found in (warm, cold):
        assert found["speculative_sampling"] < found["rrs"] < found["k_seq"] < found[IID]
        assert found["rrs"] < found["rrs_without_replacement"] < found[WITHOUT_REPLACEMENT]
    assert cold["greedy_draft"] > max(cold["rrs_without_replacement"], cold["k_seq"])
    assert cold[IID] - cold["k_seq"] < warm[IID] - warm["k_seq"]


def test_random_draws_stand_in_where_there_are_too_many() -> None:
    p, q = logits(60, 1.5, 1.0, 0)
    exact = rrs_without_replacement_acceptance(p, q, 3, draws=3600)
    drawn = rrs_without_replacement_acceptance(p, q, 3, draws=300)
    assert drawn == pytest.approx(exact, abs=0.05)
    assert drawn != exact
