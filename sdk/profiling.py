"""What a model costs on this device: load, latency, operators, overhead, memory, size."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sdk.accounting import Accounting, account
from sdk.attribution import Origin, attribute, read_sources
from sdk.environment import describe
from sdk.errors import InputError
from sdk.feeds import batch_of, golden_feed
from sdk.files import check_suffix, write_whole
from sdk.footprint import Footprint, measure
from sdk.model import Model, load
from sdk.runtimes.session import EngineProfile, Placement, Run, Session
from sdk.signature import Array
from sdk.structure import to_json
from sdk.timing import Latency, sample

SECONDS = 10.0  # for each series of calls


@dataclass(frozen=True, slots=True, kw_only=True)
class Throughput:
    """Items per second at one batch size, one call after the other."""

    batch: int
    latency: Latency
    per_second: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Operator:
    """One operator of the engine's optimised graph, in the order of execution."""

    name: str
    kind: str
    device: str
    microseconds: float
    """Mean over the profiled calls."""
    share: float
    """Of the time of all operators."""
    origin: Origin


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """A stretch of the call that the trace shows, in microseconds since the call began."""

    name: str
    track: str
    start: float
    duration: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """A measurement of one artifact on one device. Times are in microseconds where not said."""

    name: str
    target: str
    created: str
    """UTC, ISO 8601."""
    threads: int
    feed: dict[str, str]
    """Input -> dtype and shape of what was fed: the artifact's golden inputs."""
    files: dict[str, int]
    """Files of the artifact in bytes."""
    latency: Latency
    walls: tuple[float, ...]
    """Wall times of the calls that `latency` sums up, in order."""
    throughput: tuple[Throughput, ...]
    """At the batch that was fed and, where the signature allows more, at the largest."""
    accounting: Accounting
    operators: tuple[Operator, ...]
    timeline: tuple[Span, ...]
    """One profiled call, the one nearest to their median."""
    placement: tuple[Placement, ...]
    footprint: Footprint
    environment: dict[str, str]
    notes: tuple[str, ...]

    @property
    def bytes(self) -> int:
        """Size of the artifact."""
        return sum(self.files.values())

    @property
    def mapped(self) -> float:
        """Part of the operators' time that is traced to a module."""
        return 1 - sum(row.share for row in self.operators if row.origin.how == "unknown")

    def to_json(self) -> dict[str, Any]:
        """All of it as plain data; the main figures come first, flat and in readable units."""
        footprint, accounting = self.footprint, self.accounting
        return {
            "name": self.name,
            "target": self.target,
            "threads": self.threads,
            "p50_us": round(self.latency.p50, 3),
            "p90_us": round(self.latency.p90, 3),
            "p99_us": round(self.latency.p99, 3),
            "mean_us": round(self.latency.mean, 3),
            "spread": round(self.latency.spread, 4),
            "per_second": round(self.throughput[-1].per_second, 3),
            "engine_import_ms": footprint.engine_ms,
            "load_ms": footprint.load_ms,
            "first_call_us": footprint.first_call,
            "calls_to_steady": footprint.calls_to_steady,
            "resident_start_bytes": footprint.resident_start,
            "resident_loaded_bytes": footprint.resident_loaded,
            "resident_peak_bytes": footprint.resident_peak,
            "artifact_bytes": self.bytes,
            "operators_us": round(accounting.operators, 3),
            "engine_overhead_us": round(accounting.engine, 3),
            "binding_us": round(accounting.binding, 3),
            "framework_us": round(accounting.framework, 3),
            "profiled_wall_us": round(accounting.wall, 3),
            "gap_percent": round(100 * accounting.gap_ratio, 2),
            "adds_up": accounting.adds_up,
            "profiler_slowdown": round(accounting.slowdown, 3),
            "mapped_to_modules": round(self.mapped, 4),
            "profile": to_json(self),
        }

    def save(self, path: str | Path) -> None:
        """Write a report: `.html` opens offline in any browser, `.json` holds the same data."""
        from sdk.report import render
        from sdk.trace import dumps

        suffix = check_suffix(path, ".html", ".json")
        write_whole(Path(path), render(self) if suffix == ".html" else dumps(self.to_json()))

    def save_trace(self, path: str | Path) -> None:
        """Write one call as trace events (`.json`), for Perfetto's or Chrome's trace viewer."""
        from sdk.trace import dumps, trace_events

        check_suffix(path, ".json")
        write_whole(Path(path), dumps(trace_events(self)))


def profile_model(model: Model | str | Path, *, runs: int = 100) -> Profile:
    """Measure a loaded model, or the artifact at a path, on its golden inputs.

    At most `runs` calls are timed, fewer where they would take more than `SECONDS`, but at least 5.
    Raises InputError where `runs` is not positive, and what loading and running raise.
    """
    if runs < 1:
        raise InputError("There is nothing to measure.", expected="runs >= 1", got=runs)
    if isinstance(model, Model):
        return _profile(model, runs)
    with load(model) as loaded:
        return _profile(loaded, runs)


def _profile(model: Model, runs: int) -> Profile:
    artifact, device = model.artifact, model.target.device
    footprint = measure(artifact.path, device=device, threads=model.threads)
    feed = golden_feed(artifact)
    walls = _sample(model, feed, runs)
    latency = Latency.of(walls)
    limit = int(SECONDS * 1e6 / latency.mean)
    seen = model.session.profile(
        feed, runs=min(runs, max(5, limit)), through=lambda session: _predictor(model, session)
    )
    accounting = account(seen, latency.p50)
    return Profile(
        name=artifact.manifest.name,
        target=str(model.target),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        threads=model.threads,
        feed={name: f"{array.dtype}{list(array.shape)}" for name, array in feed.items()},
        files={name: entry.bytes for name, entry in artifact.manifest.files.items()},
        latency=latency,
        walls=tuple(walls),
        throughput=_throughputs(model, feed, latency, runs),
        accounting=accounting,
        operators=_operators(seen, model),
        timeline=_timeline(seen),
        placement=tuple(model.placement()),
        footprint=footprint,
        environment=describe(),
        notes=(*_doubts(latency), *seen.notes),
    )


def _value(feed: Mapping[str, Array]) -> Any:
    """What a caller passes to `predict`: the array alone where there is one input."""
    return next(iter(feed.values())) if len(feed) == 1 else feed


def _predictor(model: Model, session: Session) -> Run:
    """`predict` of the same model on another session."""
    twin = Model(
        model.artifact, session, model.target, model.processor, note="", threads=model.threads
    )
    return lambda feed: twin.predict(_value(feed))


def _sample(model: Model, feed: Mapping[str, Array], runs: int) -> list[float]:
    value = _value(feed)
    return sample({"call": lambda: model.predict(value)}, runs=runs, budget=SECONDS)["call"]


def _throughputs(
    model: Model, feed: dict[str, Array], latency: Latency, runs: int
) -> tuple[Throughput, ...]:
    """At the batch that was timed and at the largest that the signature allows."""
    size = batch_of(model.signature, feed)
    rows = [Throughput(batch=size, latency=latency, per_second=size * 1e6 / latency.mean)]
    large = golden_feed(model.artifact, largest=True)
    size = batch_of(model.signature, large)
    if size > rows[0].batch:
        latency = Latency.of(_sample(model, large, runs))
        rows.append(Throughput(batch=size, latency=latency, per_second=size * 1e6 / latency.mean))
    return tuple(rows)


def _operators(seen: EngineProfile, model: Model) -> tuple[Operator, ...]:
    means = [statistics.fmean(row.durations) for row in seen.operators]
    origins = attribute(seen.operators, read_sources(model.artifact))
    total = sum(means) or 1.0
    return tuple(
        Operator(
            name=row.operator,
            kind=row.kind,
            device=row.device,
            microseconds=mean,
            share=mean / total,
            origin=origin,
        )
        for row, mean, origin in zip(seen.operators, means, origins, strict=True)
    )


def _timeline(seen: EngineProfile) -> tuple[Span, ...]:
    """The median call. An engine's run that has no start is put in the middle of the call."""
    median = statistics.median_low(call.wall for call in seen.calls)
    index = next(i for i, call in enumerate(seen.calls) if call.wall == median)
    call = seen.calls[index]
    run = min(call.engine, call.binding)
    latest = call.binding_start + call.binding - run
    middle = (call.binding_start + latest) / 2
    start = middle if call.engine_start is None else call.engine_start
    start = min(max(start, call.binding_start), latest)
    ends = [row.starts[index] + row.durations[index] for row in seen.operators]
    scale = min(1.0, run / max(ends, default=run))  # counters that are means may exceed one call
    return (
        Span(name="predict", track="call", start=0.0, duration=call.wall),
        Span(name="binding", track="call", start=call.binding_start, duration=call.binding),
        Span(name="engine", track="call", start=start, duration=run),
        *(
            Span(
                name=row.operator,
                track="operators",
                start=start + scale * row.starts[index],
                duration=scale * row.durations[index],
            )
            for row in seen.operators
        ),
    )


def _doubts(latency: Latency) -> tuple[str, ...]:
    """What about the machine should make the reader careful."""
    if latency.p90 <= 1.5 * latency.p50:
        return ()
    return (
        f"The machine was busy: a tenth of the calls took over {latency.p90 / latency.p50:.1f} "
        "times the median. Means, and so the parts of a call, are larger than on a quiet machine.",
    )
