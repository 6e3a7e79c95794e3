"""Where quantization does not pay: the time of each layer in two builds, by their profilers."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from sdk.attribution import attribute
from sdk.errors import EngineError
from sdk.evidence import Built
from sdk.feeds import Feed

SECONDS = 0.5  # of profiled calls
SLOWER, MATTERS = 1.1, 0.005  # ratio to float, and the least gain as a share of the whole call


@dataclass(frozen=True, slots=True)
class Layer:
    """A row of the sensitivity table; times in microseconds, where the engine tells them."""

    name: str
    cost: float
    """Relative RMS change of the outputs when this layer alone is quantized."""
    precision: str
    """What the kept artifact computes it in."""
    float_us: float | None = None
    quantized_us: float | None = None


def layer_times(built: Built, feed: Feed) -> dict[str, float]:
    """Module -> mean microseconds of its operators in a call; empty where profiling fails."""
    start = time.perf_counter()
    built.session.run(feed)
    runs = int(SECONDS / max(time.perf_counter() - start, 1e-6))
    try:
        operators = built.session.profile(feed, runs=min(max(runs, 3), 50)).operators
    except EngineError:
        return {}
    sources = {name: (s.module, s.operator, s.line) for name, s in built.build.sources.items()}
    times: dict[str, float] = defaultdict(float)
    for row, origin in zip(operators, attribute(operators, sources), strict=True):
        if origin.modules:
            times[origin.modules[0]] += sum(row.durations) / len(row.durations)
    return dict(times)


def slower_than_float(
    layers: list[str], in_float: Mapping[str, float], quantized: Mapping[str, float]
) -> list[str]:
    """The layers that take noticeably longer quantized, most time lost first."""
    least = MATTERS * sum(in_float.values())
    lost = {
        layer: quantized[layer] - in_float[layer]
        for layer in layers
        if layer in quantized and layer in in_float and quantized[layer] > SLOWER * in_float[layer]
    }
    return sorted((layer for layer in lost if lost[layer] > least), key=lambda layer: -lost[layer])
