"""What drafting was worth, and a budget that goes by it where its predictions are wrong."""

from __future__ import annotations

import pytest
from test_budget import INT8, outcome

from sdk.runtimes.generation.budget import Adaptive
from sdk.runtimes.generation.worth import ENOUGH, PLAIN, Worth


@pytest.fixture
def worth() -> Worth:
    """In a request, behind its first round."""
    made = Worth()
    made.begin()
    made.observe(outcome(0, 0, verify_ms=9.0), drafted=False)
    return made


def test_rounds_of_both_kinds_are_compared(worth: Worth) -> None:
    for _ in range(PLAIN):
        assert not worth.knows_plain
        worth.observe(outcome(0, 0), drafted=False)
    assert worth.knows_plain
    for _ in range(ENOUGH):
        assert worth.speedup is None
        worth.observe(outcome(2, 1, draft_ms=1.0, verify_ms=1.5), drafted=True)
    assert worth.speedup == pytest.approx(2 / 2.5)
    worth.forget()
    assert worth.speedup is None
    worth.begin()
    assert not worth.knows_plain


def test_a_plain_round_behind_a_draft_is_no_yardstick(worth: Worth) -> None:
    """The drafter's model has taken the target's place in the caches."""
    for _ in range(2 * PLAIN):
        worth.observe(outcome(1, 0), drafted=True)
        worth.observe(outcome(0, 0, verify_ms=9.0), drafted=False)
    assert not worth.knows_plain


def test_one_long_wait_changes_little(worth: Worth) -> None:
    for _ in range(PLAIN):
        worth.observe(outcome(0, 0), drafted=False)
    for index in range(ENOUGH):
        worth.observe(outcome(1, 1, verify_ms=500.0 if index == 20 else 1.0), drafted=True)
    assert worth.speedup == pytest.approx(2.0, rel=0.1)


def test_a_model_that_slows_the_target_down_is_left_alone() -> None:
    """Predicted 1.5 times as fast; but with the draft at work each pass takes twice as long."""
    policy, made = Adaptive(INT8), []
    for _ in range(10):
        policy.begin()
        before = False
        for _ in range(100):
            size = policy.next()
            verify_ms = INT8(size + 1) * (2.0 if size or before else 1.0)
            first = bool(size) and not before
            policy.observe(outcome(size, min(size, 1), draft_ms=3.0 * first, verify_ms=verify_ms))
            made.append(size > 0)
            before = size > 0
    assert sum(made[:200]) >= ENOUGH
    assert sum(made[200:]) < 0.3 * len(made[200:])
