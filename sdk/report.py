"""A profile as one HTML file that needs no network: styles, plots and script are inside."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import numpy as np

from sdk.extras import require

if TYPE_CHECKING:
    from sdk.profiling import Operator, Profile

TOP = 20
BINS = 40
MODEL = "(model)"  # shown for operators that stand in the model's own forward
UNTRACED = "(not traced)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """One row of a bar chart; `share` is of the whole, `width` of the longest bar, in percent."""

    label: str
    detail: str
    microseconds: float
    share: float
    width: float
    depth: int = 0


def render(profile: Profile) -> str:
    """The report. EngineUnavailableError where jinja2 is not installed."""
    return fill_template(
        "report.html.j2",
        profile=profile,
        histogram=histogram(profile.walls),
        warmup=_warmup(profile.footprint.calls),
        parts=_parts(profile),
        top=_bars(sorted(profile.operators, key=lambda row: -row.microseconds)[:TOP]),
        modules=module_tree(profile.operators),
        kinds=_kinds(profile.operators),
        placement=_placement(profile),
        memory=_memory(profile),
    )


def fill_template(name: str, **values: Any) -> str:
    """A template of the package, by its path in it; EngineUnavailableError without jinja2."""
    jinja2 = require("jinja2", purpose="The HTML report")
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(
            lambda path: files("sdk").joinpath(path).read_text(encoding="utf-8")
        ),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(us=show_time, size=show_size, percent=show_percent)
    return str(environment.get_template(name).render(**values))


def show_time(microseconds: float) -> str:
    """Three digits and a unit."""
    for limit, scale, unit in ((1e3, 1.0, "µs"), (1e6, 1e3, "ms")):
        if abs(microseconds) < limit:
            return f"{_digits(microseconds / scale)} {unit}"
    return f"{_digits(microseconds / 1e6)} s"


def show_size(count: float) -> str:
    """Bytes in decimal units, three digits."""
    for unit in ("B", "kB", "MB"):
        if abs(count) < 1000:
            return f"{_digits(count)} {unit}"
        count /= 1000
    return f"{_digits(count)} GB"


def show_percent(ratio: float) -> str:
    """One decimal below 10 %."""
    return f"{100 * ratio:.1f} %" if abs(ratio) < 0.1 else f"{100 * ratio:.0f} %"


def _digits(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 100 or value == 0 else f"{value:.3g}"


def histogram(walls: tuple[float, ...]) -> dict[str, Any]:
    """Bars up to the 99th percentile, in parts of the plot; how many calls lie beyond is told."""
    values = np.asarray(walls)
    low, high = float(values.min()), float(np.percentile(values, 99))
    high = max(high, low * 1.01)
    counts, edges = np.histogram(values, bins=BINS, range=(low, high))
    peak = max(int(counts.max()), 1)
    return {
        "bars": [
            {
                "x": i / BINS,
                "height": int(n) / peak,
                "count": int(n),
                "from": edges[i],
                "to": edges[i + 1],
            }
            for i, n in enumerate(counts)
        ],
        "low": low,
        "high": high,
        "peak": peak,
        "beyond": int((values > high).sum()),
        "marks": [
            {"label": f"p{q}", "value": value, "x": min(1.0, (value - low) / (high - low))}
            for q in (50, 90, 99)
            for value in [float(np.percentile(values, q))]
        ],
    }


def module_tree(operators: tuple[Operator, ...]) -> list[Bar]:
    """Every module with its submodules' time in it, in the order of execution, parents first."""
    times: dict[tuple[str, ...], float] = defaultdict(float)
    for row in operators:
        path = _path(row)
        for depth in range(1, len(path) + 1):
            times[path[:depth]] += row.microseconds
    order = {path: index for index, path in enumerate(times)}
    total = sum(row.microseconds for row in operators) or 1.0
    longest = max((time for path, time in times.items() if len(path) == 1), default=1.0) or 1.0

    def place(path: tuple[str, ...]) -> list[int]:
        return [order[path[:depth]] for depth in range(1, len(path) + 1)]

    return [
        Bar(
            label=path[-1],
            detail=".".join(path),
            microseconds=times[path],
            share=times[path] / total,
            width=100 * times[path] / longest,
            depth=len(path) - 1,
        )
        for path in sorted(times, key=place)
    ]


def _path(row: Operator) -> tuple[str, ...]:
    if row.origin.how == "unknown":
        return (UNTRACED,)
    module = row.origin.modules[0]
    return tuple(module.split(".")) if module else (MODEL,)


def _bars(rows: list[Operator]) -> list[Bar]:
    longest = max((row.microseconds for row in rows), default=1.0) or 1.0
    return [
        Bar(
            label=row.name,
            detail=" + ".join(module or MODEL for module in row.origin.modules) or UNTRACED,
            microseconds=row.microseconds,
            share=row.share,
            width=100 * row.microseconds / longest,
        )
        for row in rows
    ]


def _kinds(operators: tuple[Operator, ...]) -> list[Bar]:
    times: dict[str, list[float]] = defaultdict(list)
    for row in operators:
        times[row.kind].append(row.microseconds)
    total = sum(row.microseconds for row in operators) or 1.0
    longest = max(map(sum, times.values()), default=1.0) or 1.0
    return [
        Bar(
            label=kind,
            detail=f"{len(found)} operator{'s' if len(found) > 1 else ''}",
            microseconds=sum(found),
            share=sum(found) / total,
            width=100 * sum(found) / longest,
        )
        for kind, found in sorted(times.items(), key=lambda item: -sum(item[1]))
    ]


def _parts(profile: Profile) -> list[dict[str, Any]]:
    """The stacked bar: parts in percent of the larger of wall and total; a gap is a part, too."""
    books = profile.accounting
    whole = max(books.wall, books.total)
    rows = [
        (
            "operators",
            "Operators",
            books.operators,
            "sum of all operators, by the engine's profiler",
        ),
        (
            "engine",
            "Engine overhead",
            books.engine,
            "the engine's run by its own clock, less the operators",
        ),
        ("binding", "Binding", books.binding, "the engine's Python function, less its run"),
        ("framework", "SDK", books.framework, "the SDK's own Python, measured apart"),
        ("gap", "In none of them", max(books.gap, 0.0), "wall time less the sum of the parts"),
    ]
    return [
        {"key": key, "label": label, "time": time, "width": 100 * time / whole, "how": how}
        for key, label, time, how in rows
    ]


def _placement(profile: Profile) -> list[dict[str, Any]]:
    shares = {row.name: row.share for row in profile.operators}
    return [{"row": row, "share": shares.get(row.operator)} for row in profile.placement]


def _memory(profile: Profile) -> list[dict[str, Any]]:
    """Resident bytes at four moments of the cold start; empty where the system does not tell."""
    cold = profile.footprint
    if not cold.resident_peak:
        return []
    moments = [
        ("Python, NumPy and the SDK", cold.resident_start, 0),
        ("the engine's library imported", cold.resident_engine, cold.resident_start),
        ("the model loaded", cold.resident_loaded, cold.resident_engine),
        ("peak during the calls", cold.resident_peak, cold.resident_loaded),
    ]
    most = max(now for _, now, _ in moments)
    return [
        {"label": label, "bytes": now, "more": now - before, "width": 100 * now / most}
        for label, now, before in moments
    ]


def _warmup(calls: tuple[float, ...]) -> list[dict[str, Any]]:
    """The first calls of a cold start, on a logarithmic scale from half the quickest one."""
    low = min(calls) / 2
    top = np.log(max(calls) / low)
    return [
        {"x": index / len(calls), "height": float(np.log(call / low) / top), "time": call}
        for index, call in enumerate(calls)
    ]
