"""`edge profile`: where the time and the memory go."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from rich.console import RenderableType
from typer import Option

import sdk
from sdk.cli.options import ArtifactPath
from sdk.cli.output import Answer, say, table

if TYPE_CHECKING:
    from sdk.profiling import Profile


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
    yield table("Profile", ("", ""), _facts(measured.to_json()))


def _facts(data: Mapping[str, Any]) -> Iterator[tuple[str, object]]:
    return ((key, value) for key, value in data.items() if not isinstance(value, (list, dict)))
