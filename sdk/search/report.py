"""A search as one HTML file that needs no network: the front, the candidates, the layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from sdk.manifest import Candidate
from sdk.report import fill_template
from sdk.search.front import loss
from sdk.search.result import Search
from sdk.target import Target

MARGIN = 0.06  # of an axis, beyond the outermost points


@dataclass(frozen=True, slots=True)
class Dot:
    """A candidate in a plot; `x` and `y` are parts of the axes, `number` is its row's."""

    number: int
    x: float
    y: float
    label: str
    kept: bool
    on_front: bool


@dataclass(frozen=True, slots=True)
class Plot:
    """Latency against one other figure."""

    title: str
    dots: tuple[Dot, ...]
    x_ends: tuple[float, float]
    y_ends: tuple[float, float]
    unit: str


def render(search: Search) -> str:
    """The report. EngineUnavailableError where jinja2 is not installed."""
    most = max((layer.cost for layer in search.layers), default=0.0) or 1.0
    return fill_template(
        "search/search.html.j2",
        search=search,
        manifest=search.artifact.manifest,
        rows=[_row(search, index) for index in range(len(search.candidates))],
        plots=_plots(search),
        layers=[(layer, 100 * min(layer.cost / most, 1.0)) for layer in search.layers],
        timed_layers=any(layer.quantized_us is not None for layer in search.layers),
    )


def _row(search: Search, index: int) -> dict[str, Any]:
    candidate = search.candidates[index]
    lost = loss(candidate)
    return {
        "number": index + 1,
        "candidate": candidate,
        "name": name_of(candidate),
        "loss": f"{lost:.4g}" if candidate.bytes and lost < float("inf") else "",
        "on_front": candidate in search.front,
    }


def name_of(candidate: Candidate) -> str:
    """The precision, its settings and how many layers are in float."""
    count = len(candidate.float_layers)
    mixed = f"{count} in float" if count else ""
    parts = (Target.parse(candidate.target).precision, *candidate.settings.values(), mixed)
    return ", ".join(filter(None, parts))


def _plots(search: Search) -> list[Plot]:
    """Latency against size and against loss; none where nothing was timed."""
    timed = [i for i, c in enumerate(search.candidates) if c.latency is not None]
    if not timed:
        return []
    what = f"loss of {search.metric}" if search.metric else "relative RMS error"
    return [
        _plot(search, timed, "Latency and size of the engine files", "bytes", _bytes),
        _plot(search, timed, f"Latency and {what}", "", loss),
    ]


def _plot(
    search: Search,
    chosen: Sequence[int],
    title: str,
    unit: str,
    value: Callable[[Candidate], float],
) -> Plot:
    found = [search.candidates[index] for index in chosen]
    xs = [candidate.latency.p50 for candidate in found if candidate.latency is not None]
    ys = [value(candidate) for candidate in found]
    front = search.front
    dots = tuple(
        Dot(
            number=index + 1,
            x=_place(x, xs),
            y=_place(y, ys),
            label=name_of(candidate),
            kept=candidate.kept,
            on_front=candidate in front,
        )
        for index, candidate, x, y in zip(chosen, found, xs, ys, strict=True)
    )
    return Plot(title, dots, (min(xs), max(xs)), (min(ys), max(ys)), unit)


def _place(value: float, values: Sequence[float]) -> float:
    low, high = min(values), max(values)
    part = (value - low) / (high - low) if high > low else 0.5
    return MARGIN + (1 - 2 * MARGIN) * part


def _bytes(candidate: Candidate) -> float:
    return float(candidate.bytes)
