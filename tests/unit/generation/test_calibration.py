"""What a drafter's claims are worth, and how much of a draft the budget lets the target read."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sdk.runtimes.generation.budget import Adaptive, CostTable
from sdk.runtimes.generation.calibration import Calibration
from sdk.runtimes.generation.contracts import (
    IID,
    NOTHING,
    ROOT,
    DraftTree,
    Outcome,
    Verdict,
)

STEEP = CostTable({1: 1.0, 2: 1.25, 3: 1.5, 5: 2.0, 9: 3.0})
ROWS: Any = None


def test_what_is_claimed_is_believed_at_first() -> None:
    tree = DraftTree((1, 2, 3), (ROOT, 0, ROOT), scores=(0.8, 0.4, 0.2))
    assert Calibration().chances(tree) == pytest.approx([0.8, 0.4, 0.2], abs=0.02)


@pytest.mark.parametrize(("claim", "truth"), [(0.9, 0.2), (0.1, 0.7), (0.5, 0.5)])
def test_then_what_came_true(claim: float, truth: float) -> None:
    """Of a chain of two: the second's claim is the same, given the first."""
    rng, found = np.random.default_rng(0), Calibration()
    tree = DraftTree.chain((1, 2), scores=(claim, claim**2))
    for _ in range(400):
        held = int(np.cumprod(rng.random(2) < truth).sum())
        found.learn(tree, [*(1, 2)[:held], 0])
    first, second = found.chances(tree)
    assert first == pytest.approx(truth, abs=0.15)
    assert second == pytest.approx(first**2)


def test_other_claims_are_trusted_as_the_ones_that_were_tried() -> None:
    liar, honest = Calibration(), Calibration()
    tried, other = (DraftTree.chain((1,), scores=(claim,)) for claim in (0.5, 0.9))
    for index in range(100):
        liar.learn(tried, [0])
        honest.learn(tried, [index % 2])
    assert liar.chances(other)[0] < 0.1
    assert honest.chances(other)[0] > 0.8


def test_nodes_that_were_not_reached_say_nothing() -> None:
    found = Calibration()
    tree = DraftTree.chain((1, 2, 3), scores=(0.5, 0.4, 0.3))
    before = found.chances(tree)
    assert found.learn(tree, [1]) == 1
    assert found.chances(tree)[1] / found.chances(tree)[0] == pytest.approx(before[1] / before[0])
    assert found.learn(tree, [1, 2, 3, 9]) == 3
    assert found.learn(NOTHING, [1]) == 0


def test_nodes_are_read_while_they_pay() -> None:
    policy = Adaptive(STEEP)
    sure = DraftTree((1, 2, 3), (ROOT, 0, ROOT), scores=(0.95, 0.9, 0.03))
    assert policy.trim(sure).tokens == (1, 2)
    assert policy.predicted_speedup == pytest.approx(2.85 / 1.5, rel=0.05)
    assert policy.trim(DraftTree.chain((1,), scores=(0.1,))) == NOTHING
    assert policy.predicted_speedup == 1.0


def test_drawn_drafts_stay_whole() -> None:
    """Of what was left, the verifier would not know the law."""
    row = np.full(4, 0.25)
    drawn = DraftTree.chain((1,), sampling=IID, probs=(row, None), scores=(0.01,))
    silent = DraftTree.chain((1,))
    policy = Adaptive(STEEP)
    assert policy.trim(drawn) is drawn
    assert policy.trim(silent) is silent


def request(policy: Adaptive, truth: list[float], *, claim: float, draft_ms: float) -> float:
    """Nodes read per round, over rounds of a chain of which each node holds with a `truth`."""
    rng, read = np.random.default_rng(0), 0
    policy.begin()
    for chance in truth:
        size = policy.next()
        whole = DraftTree.chain(range(1, size + 1), scores=[claim ** (i + 1) for i in range(size)])
        tree = policy.trim(whole) if size else NOTHING
        held = int(np.cumprod(rng.random(20) < chance).sum())
        accepted = min(held, len(tree))
        committed = [*range(1, accepted + 1), accepted + 1 if held > accepted else 0]
        verdict = Verdict(tuple(range(accepted)), committed[-1], len(tree), accepted == len(tree))
        verify_ms = STEEP(len(tree) + 1)
        policy.observe(Outcome(tree, verdict, tuple(committed), ROWS, draft_ms, verify_ms))
        read += len(tree)
    return read / len(truth)


@pytest.mark.parametrize(("draft_ms", "most"), [(0.05, 25), (1.0, 10)])
def test_drafts_that_never_hold_are_rarely_made(draft_ms: float, most: int) -> None:
    """The cheap ones are tried more often: of a hundred rounds so many have one at most."""
    policy = Adaptive(STEEP)
    assert request(policy, [0.0] * 300, claim=0.8, draft_ms=draft_ms) < 0.2
    assert 0 < sum(policy.next() > 0 for _ in range(100)) < most


def test_cheap_drafts_are_back_soon() -> None:
    policy = Adaptive(STEEP)
    request(policy, [0.0] * 300, claim=0.8, draft_ms=0.05)
    assert request(policy, [0.95] * 100, claim=0.8, draft_ms=0.05) > 1
