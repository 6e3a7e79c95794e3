"""Latency figures, and calls measured in turn."""

from __future__ import annotations

import time
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest

from sdk.timing import Latency, interleave, measure


def test_figures() -> None:
    found = Latency.of([float(value) for value in range(1, 102)])
    assert (found.runs, found.p50, found.p90, found.p99, found.mean) == (101, 51, 91, 100, 51)
    assert found.spread == pytest.approx(50 / 51)


def test_one_outlier_moves_the_mean_only() -> None:
    found = Latency.of([10.0] * 99 + [1e6])
    assert (found.p50, found.p90, found.spread) == (10, 10, 0)
    assert found.mean > 1e4


def test_a_call_that_sleeps() -> None:
    found = measure(lambda: time.sleep(0.002), runs=10, warmup=1)
    assert found.runs == 10
    assert 2000 <= found.p50 < 100_000


def test_calls_take_turns() -> None:
    log: list[str] = []
    calls = {name: (lambda name=name: log.append(name)) for name in "abc"}  # type: ignore[misc]
    found = interleave(calls, runs=6, warmup=1)
    assert {name: latency.runs for name, latency in found.items()} == dict.fromkeys("abc", 6)
    rounds = ["".join(log[start : start + 3]) for start in range(3, len(log), 3)]
    assert all(sorted(order) == ["a", "b", "c"] for order in rounds)


def test_no_call_mostly_follows_the_same_other_one() -> None:
    """A round-robin whose start moves on would keep the neighbours."""
    log: list[str] = []
    calls = {name: (lambda name=name: log.append(name)) for name in "abcd"}  # type: ignore[misc]
    interleave(calls, runs=400, warmup=1)
    pairs = Counter(pairwise(log[4:]))
    shares = [pairs[a, b] / 400 for a in "abcd" for b in "abcd" if a != b]
    assert 0.2 < min(shares) <= max(shares) < 0.4


def test_the_budget_ends_it_but_not_before_five_rounds() -> None:
    found = interleave({"slow": lambda: time.sleep(0.01)}, runs=10_000, warmup=100, budget=0.02)
    assert 5 <= found["slow"].runs < 20


def test_the_ratio_of_two_calls_holds() -> None:
    small, large = np.ones(1000), np.ones(1_000_000)
    found = interleave({"small": small.sum, "large": large.sum}, runs=30, warmup=3)
    assert found["large"].p50 > 3 * found["small"].p50


def test_an_error_is_not_timed() -> None:
    def fail() -> None:
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        measure(fail)
