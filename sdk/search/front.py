"""What a search keeps: the Pareto front, the budgets, and the choice among what meets them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from sdk.errors import BudgetError
from sdk.evidence import Built
from sdk.manifest import Candidate
from sdk.target import FLOATS, STATIC, Target

NEAREST = 3
SINGLE = (*FLOATS, *STATIC)
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

    Single precisions go before mixtures and weight-only ones, which have to prove that they are
    faster. Where nothing was timed, the smallest. BudgetError lists the nearest where nothing is
    within the budget.
    """
    within = [built for built in finalists if not budget.excess(built)]
    if not within:
        raise _unmet(finalists, budget)
    if budget.latency_us is not None:
        limit = math.inf if baseline is None else _time(baseline)
        quick = [built for built in within if _time(built) <= limit] or within
        return min(quick, key=lambda built: (built.bytes, _time(built)))
    if all(built.latency is None for built in within):
        return min(within, key=_speed)
    singles = [built for built in within if is_single(built)] or within
    best = min(singles, key=_speed)
    return min((built for built in within if proven_faster(built, best)), key=_speed, default=best)


def is_single(built: Built) -> bool:
    """Whether one precision computes all of it."""
    return built.target.precision in SINGLE and not built.facts.float_layers


def proven_faster(built: Built, other: Built) -> bool:
    """Whether, at about 97.5 %, the median of the ratios round by round is below 1.

    Medians alone would let noise decide between builds that are equally fast.
    """
    if not built.walls or not other.walls or _time(built) >= _time(other):
        return False
    ratios = sorted(mine / its for mine, its in zip(built.walls, other.walls, strict=True))
    count = len(ratios)
    rank = math.ceil(count / 2 + math.sqrt(count))  # of the upper end of the median's interval
    return rank <= count and ratios[rank - 1] < 1


def _speed(built: Built) -> tuple[float, int]:
    return _time(built), built.bytes


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
