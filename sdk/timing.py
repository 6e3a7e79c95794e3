"""Latency, measured so that two builds can be compared on a noisy machine."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Latency:
    """Wall times of single calls, in microseconds."""

    runs: int
    p50: float
    p90: float
    p99: float
    mean: float
    spread: float
    """Interquartile range over the median: a ratio."""

    @classmethod
    def of(cls, microseconds: list[float]) -> Latency:
        """Summarise a list of wall times."""
        q25, p50, q75, p90, p99 = np.percentile(microseconds, [25, 50, 75, 90, 99]).tolist()
        mean = float(np.mean(microseconds))
        return cls(len(microseconds), p50, p90, p99, mean, (q75 - q25) / p50)

    def to_json(self) -> dict[str, float]:
        """Plain numbers, rounded to a nanosecond."""
        return {key: round(value, 3) for key, value in asdict(self).items()}


def measure(call: Callable[[], object], *, runs: int = 100, warmup: int = 10) -> Latency:
    """Time `call` alone."""
    return interleave({"call": call}, runs=runs, warmup=warmup)["call"]


def interleave(
    calls: Mapping[str, Callable[[], object]],
    *,
    runs: int = 100,
    warmup: int = 10,
    budget: float = 10.0,
) -> dict[str, Latency]:
    """`sample`, summed up."""
    samples = sample(calls, runs=runs, warmup=warmup, budget=budget)
    return {name: Latency.of(times) for name, times in samples.items()}


def sample(
    calls: Mapping[str, Callable[[], object]],
    *,
    runs: int = 100,
    warmup: int = 10,
    budget: float = 10.0,
) -> dict[str, list[float]]:
    """Time several calls in turn, so that a slow moment of the machine hits all of them.

    Stops after `runs` rounds or after `budget` seconds, but never before 5 rounds. Each round has
    an order of its own: threads of one call may spin on into the next, so that a call which always
    followed the same other one would pay for it. Returns microseconds, round by round.
    """
    for call in calls.values():
        _spin(call, warmup, budget / 10)
    order, shuffle = list(calls), random.Random(0).shuffle
    samples: dict[str, list[float]] = {name: [] for name in order}
    end = time.perf_counter() + budget
    for done in range(runs):
        if done >= 5 and time.perf_counter() > end:
            break
        shuffle(order)
        for name in order:
            start = time.perf_counter_ns()
            calls[name]()
            samples[name].append((time.perf_counter_ns() - start) / 1e3)
    return samples


def _spin(call: Callable[[], object], times: int, budget: float) -> None:
    """Warm up: at least once, at most `times` calls or `budget` seconds."""
    end = time.perf_counter() + budget
    for _ in range(max(times, 1)):
        call()
        if time.perf_counter() > end:
            return
