"""`edge profile`: where the time and the memory go."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from rich.console import RenderableType
from typer import Option

import sdk
from sdk.cli.options import ArtifactPath
from sdk.cli.output import Answer, duration, say, size, table

if TYPE_CHECKING:
    from sdk.accounting import Accounting
    from sdk.profiling import Profile

SLOWEST = 10
OPERATOR_COLUMNS = ("operator", "module", ">time", ">share")


def profile(
    path: ArtifactPath,
    *,
    runs: Annotated[int, Option(min=1, help="How many calls to time.")] = 100,
    output: Annotated[
        Path | None, Option("--output", "-o", help="Report to write: .html or .json.")
    ] = None,
    trace: Annotated[
        Path | None, Option(help="Trace to write, a .json for Perfetto or Chrome.")
    ] = None,
) -> Answer:
    """Measure an artifact on this device: load, latency, operators, overhead, memory, size.

    Examples:

    ```console
    $ edge profile student.edge --output report.html --trace trace.json
    $ edge profile student.edge --runs 500 --json
    ```
    """
    say(f"... load {path}, warm up, time {runs} calls and the operators")
    measured = sdk.profile(path, runs=runs)
    if output is not None:
        measured.save(output)
        say(f"wrote {output}")
    if trace is not None:
        measured.save_trace(trace)
        say(f"wrote {trace}")
    return Answer(document=measured.to_json(), view=lambda: _view(measured))


def _view(measured: Profile) -> Iterator[RenderableType]:
    heading = f"{measured.name}: {measured.target}, {measured.threads} threads"
    yield table(heading, ("", ""), _figures(measured))
    yield table("A profiled call, mean", ("part", ">time", ">share"), _parts(measured.accounting))
    slowest = sorted(measured.operators, key=lambda row: -row.microseconds)[:SLOWEST]
    rows = [
        (row.kind, ", ".join(row.origin.modules), duration(row.microseconds), f"{row.share:.1%}")
        for row in slowest
    ]
    yield table(f"The {len(rows)} slowest operators", OPERATOR_COLUMNS, rows)
    for note in (*measured.accounting.remarks, *measured.notes):
        yield f"note: {note}"


def _figures(measured: Profile) -> Iterator[tuple[str, str]]:
    latency, cold = measured.latency, measured.footprint
    middle, tail = duration(latency.p50), f"{duration(latency.p90)} / {duration(latency.p99)}"
    yield "latency, p50 / p90 / p99", f"{middle} / {tail} of {latency.runs} calls"
    for row in measured.throughput:
        yield f"throughput, batch {row.batch}", f"{row.per_second:.0f} a second"
    yield "cold start", f"import {cold.engine_ms:.0f} ms, load {cold.load_ms:.0f} ms"
    yield "first call", f"{duration(cold.first_call)}, steady after {cold.calls_to_steady} calls"
    if cold.resident_peak:
        yield "memory", f"{size(cold.resident_loaded)} loaded, {size(cold.resident_peak)} at most"
    yield "artifact", size(measured.bytes)


def _parts(parts: Accounting) -> Iterator[tuple[str, str, str]]:
    rows = {
        "operators": parts.operators,
        "engine around them": parts.engine,
        "the engine's Python binding": parts.binding,
        "edge-sdk": parts.framework,
        "in none of these": parts.gap,
        "wall": parts.wall,
    }
    return ((name, f"{time:.1f} us", f"{time / parts.wall:.1%}") for name, time in rows.items())
