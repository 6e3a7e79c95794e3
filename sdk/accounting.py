"""Where the wall time of a call goes, and whether the parts add up to it.

The parts come from different clocks and are not made to fit: the operators from the engine's
profiler, the run from the engine's own clock, the binding from a stopwatch around the engine's
Python function, and the SDK's share from calls of their own in which the engine only replays. All
are means over the same calls, since medians of parts do not add up to the median of the whole.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass

from sdk.runtimes.session import EngineProfile

TOLERANCE = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Accounting:
    """Microseconds per call, means over `calls` profiled calls."""

    calls: int
    wall: float
    """Of `predict`, with the engine's profiler on."""
    operators: float
    """Sum of all operators, by the engine's profiler."""
    engine: float
    """The engine's run by its own clock, less the operators: dispatch, thread pool, profiler."""
    binding: float
    """The engine's Python function, less its run: arrays to tensors and back."""
    framework: float
    """The SDK's own Python, measured apart."""
    total: float
    gap: float
    """Wall less total; negative where the parts are more than the whole."""
    slowdown: float
    """Median wall of the profiled calls over that of plain calls: the profiler's own cost."""
    remarks: tuple[str, ...]
    """What does not fit, and why."""

    @property
    def gap_ratio(self) -> float:
        """The gap as a part of the wall time."""
        return self.gap / self.wall

    @property
    def adds_up(self) -> bool:
        """Whether the parts are the wall time within 5 %."""
        return abs(self.gap_ratio) <= TOLERANCE


def account(profile: EngineProfile, plain_median: float) -> Accounting:
    """Add up a profile. `plain_median` is the wall time of calls without a profiler, in us."""
    calls = profile.calls
    wall = statistics.fmean(call.wall for call in calls)
    bound = statistics.fmean(call.binding for call in calls)
    run = statistics.fmean(call.engine for call in calls)
    operators = sum(statistics.fmean(row.durations) for row in profile.operators)
    engine, binding = max(0.0, run - operators), max(0.0, bound - run)
    total = operators + engine + binding + profile.framework
    slowdown = statistics.median(call.wall for call in calls) / plain_median
    return Accounting(
        calls=len(calls),
        wall=wall,
        operators=operators,
        engine=engine,
        binding=binding,
        framework=profile.framework,
        total=total,
        gap=wall - total,
        slowdown=slowdown,
        remarks=_remarks(wall, bound, run, operators, wall - total, slowdown),
    )


def _remarks(
    wall: float, bound: float, run: float, operators: float, gap: float, slowdown: float
) -> tuple[str, ...]:
    remarks = []
    if operators > run:
        remarks.append(
            f"The operators add up to {operators - run:.1f} us more than the engine's run: they "
            "overlap on several threads, or the profiler's clock is too coarse."
        )
    if run > bound:
        remarks.append(
            f"The engine's clock shows {run - bound:.1f} us more than the call to it took."
        )
    if abs(gap) > TOLERANCE * wall:
        remarks.append(
            f"{gap:.1f} us of {wall:.1f} us ({gap / wall:.1%}) are in none of the parts. "
            + _cause(gap, wall - bound)
        )
    if slowdown > 1 + TOLERANCE:
        remarks.append(
            f"With the profiler on, the median call takes {slowdown - 1:.0%} longer than without: "
            "the parts are those of a profiled call."
        )
    return tuple(remarks)


def _cause(gap: float, outside: float) -> str:
    if gap < 0:
        return "The parts are more than the whole: see the clocks above."
    return (
        f"Outside the engine's function a call spent {outside:.1f} us, more than the SDK needs "
        "when measured apart: the process was interrupted, or the caches were cold."
    )
