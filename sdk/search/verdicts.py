"""Why each candidate was kept or not, in a sentence for the manifest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sdk.errors import EdgeError
from sdk.evidence import Built
from sdk.search.front import Budget
from sdk.search.layers import slower_than_float
from sdk.target import FLOATS

SHOWN = 3  # layers that a reason names


@dataclass(frozen=True)
class Verdicts:
    """On builds that passed their gates, after one interleaved run of all of them."""

    finalists: Sequence[Built]
    baseline: Built | None
    kept: Built
    budget: Budget
    times: Mapping[str, Mapping[str, float]]
    """Precision -> layer -> microseconds."""

    def of(self, built: Built) -> str:
        """The reason of one build."""
        if built is self.kept:
            return self._merit()
        if over := self.budget.excess(built):
            return f"over the budget: {over}"
        if built.latency is None or self.kept.latency is None:
            return self._larger(built)
        if built.latency.p50 >= self.kept.latency.p50 and built.bytes >= self.kept.bytes:
            return self._slower(built, self.kept)
        if self.budget.latency_us is None:
            faster = built.latency.p50 < self.kept.latency.p50
            return self._unproven(built) if faster else self._slower(built, self.kept)
        fp32 = self.baseline
        if fp32 is not None and fp32.latency is not None and built.latency.p50 > fp32.latency.p50:
            return self._slower(built, fp32)
        return self._larger(built)

    def _merit(self) -> str:
        kept, count = self.kept, len(self.finalists)
        if kept.latency is None:
            where = f"not timed here: checked on a {kept.checked_on}"
            return f"the smallest of {count} that pass; {where}"
        smallest = self.budget.latency_us is not None
        kind = "the smallest within the budgets" if smallest else "the fastest"
        return f"{kind} of {count} that pass: {kept.latency.p50:.0f} us (median)"

    def _unproven(self, built: Built) -> str:
        assert built.latency is not None
        assert self.kept.latency is not None
        figures = f"{built.latency.p50:.0f} us against {self.kept.latency.p50:.0f} us"
        return f"not reliably faster than {label(self.kept)}: {figures} (median)"

    def _larger(self, built: Built) -> str:
        return f"larger than {label(self.kept)}: {built.bytes} bytes against {self.kept.bytes}"

    def _slower(self, built: Built, other: Built) -> str:
        assert built.latency is not None
        assert other.latency is not None
        figures = f"{built.latency.p50:.0f} us against {other.latency.p50:.0f} us"
        what = f"{label(built)} is slower than {label(other)}: {figures}"
        return f"{what} (median, one interleaved run){self._slow_layers(built, other)}"

    def _slow_layers(self, built: Built, other: Built) -> str:
        """Where a quantized build loses to float, by the engine's profiler."""
        quantized = self.times.get(built.target.precision)
        if quantized is None or other.target.precision not in FLOATS or built.facts.float_layers:
            return ""
        in_float = self.times["fp32"]
        slow = slower_than_float(list(quantized), in_float, quantized)[:SHOWN]
        rows = [f"{n or '(model)'} {quantized[n]:.0f} against {in_float[n]:.0f} us" for n in slow]
        return f"; slower in {', '.join(rows)}" if rows else ""


def label(built: Built) -> str:
    """A build's precision, and how many layers it has in float."""
    count = len(built.facts.float_layers)
    mixed = f" with {count} layer{'s' if count > 1 else ''} in float" if count else ""
    return f"{built.target.precision}{mixed}"


def in_one_line(error: EdgeError) -> str:
    """What went wrong, with its details, as the reason of a candidate."""
    details = (("expected", error.expected), ("got", error.got))
    parts = [error.what, *(f"{name} {value}" for name, value in details if value is not None)]
    return "".join(c if c.isprintable() else " " for c in "; ".join(parts))
