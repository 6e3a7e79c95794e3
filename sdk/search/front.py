"""What a search keeps: the Pareto front, the budgets, and the choice among what meets them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from sdk.errors import BudgetError
from sdk.evidence import Built
from sdk.manifest import Candidate
from sdk.target import Target

NEAREST = 3
Point = tuple[float, float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """Upper bounds of the median latency in microseconds and of the engine files in bytes."""

    latency_us: float | None = None
    bytes: int | None = None

    def excess(self, built: Built) -> str:
        """What of the budget a build does not meet, in words; empty where it meets all."""
        over = []
        if self.bytes is not None and built.bytes > self.bytes:
            over.append(f"{built.bytes} bytes against {self.bytes} allowed")
        if self.latency_us is not None and built.latency is not None:
            median = built.latency.p50
            if median > self.latency_us:
                over.append(f"{median:.0f} us against {self.latency_us:.0f} us allowed")
        return ", ".join(over)

    def ratio(self, built: Built) -> float:
        """How many times over the budget a build is, where it is most."""
        ratios = [1.0]
        if self.bytes is not None:
            ratios.append(built.bytes / self.bytes)
        if self.latency_us is not None and built.latency is not None:
            ratios.append(built.latency.p50 / self.latency_us)
        return max(ratios)


def choose(finalists: Sequence[Built], baseline: Built | None, budget: Budget) -> Built:
    """The fastest within the budget; with a latency budget the smallest not slower than fp32.

    Where nothing was timed, the smallest. BudgetError lists the nearest where nothing is within.
    """
    within = [built for built in finalists if not budget.excess(built)]
    if not within:
        raise _unmet(finalists, budget)
    limit = math.inf if baseline is None else _time(baseline)
    if budget.latency_us is not None:
        quick = [built for built in within if _time(built) <= limit] or within
        return min(quick, key=lambda built: (built.bytes, _time(built)))
    return min(within, key=lambda built: (_time(built), built.bytes))


def _unmet(finalists: Sequence[Built], budget: Budget) -> BudgetError:
    nearest = sorted(finalists, key=budget.ratio)[:NEAREST]
    return BudgetError(
        "No candidate that keeps the accuracy is within the budgets.",
        expected=", ".join(_bounds(budget)),
        got="; ".join(f"{built.target}: {budget.excess(built)}" for built in nearest),
        fix="allow more latency, size or loss, or take a smaller model",
    )


def _bounds(budget: Budget) -> list[str]:
    bounds = []
    if budget.latency_us is not None:
        bounds.append(f"a median of at most {budget.latency_us:g} us")
    if budget.bytes is not None:
        bounds.append(f"at most {budget.bytes} bytes")
    return bounds


def _time(built: Built) -> float:
    return built.latency.p50 if built.latency is not None else math.inf


def pareto(candidates: Sequence[Candidate]) -> tuple[Candidate, ...]:
    """Those that no other one beats in latency, size and accuracy together, fastest first.

    Only candidates that were timed count: they passed their gates. Accuracy is the metric or,
    without one, the largest relative RMS error of an output.
    """
    timed = [c for c in candidates if c.latency is not None]
    points = {index: _point(candidate) for index, candidate in enumerate(timed)}
    front = [
        candidate
        for index, candidate in enumerate(timed)
        if not any(_beats(other, points[index]) for other in points.values())
    ]
    return tuple(sorted(front, key=lambda c: c.latency.p50 if c.latency else math.inf))


def loss(candidate: Candidate) -> float:
    """What it loses against fp32: the metric's drop, or the relative RMS error; 0 for fp32."""
    fidelity = candidate.fidelity
    if fidelity is None:
        return 0.0 if Target.parse(candidate.target).precision == "fp32" else math.inf
    if fidelity.reference is not None and fidelity.measured is not None:
        return fidelity.reference - fidelity.measured
    return max((output.rms for output in fidelity.outputs), default=0.0)


def _point(candidate: Candidate) -> Point:
    assert candidate.latency is not None
    return candidate.latency.p50, float(candidate.bytes), loss(candidate)


def _beats(a: Point, b: Point) -> bool:
    return a != b and all(x <= y for x, y in zip(a, b, strict=True))
