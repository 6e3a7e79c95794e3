"""What is being done now, shown on a terminal."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator

from sdk.extras import installed

Report = Callable[[str, int, int], None]


@contextlib.contextmanager
def terminal(report: Report | None) -> Iterator[Report]:
    """The caller's own `report(what, done, total)`, or a progress line on stderr.

    The line needs the package rich and a terminal; elsewhere nothing is shown.
    """
    if report is not None:
        yield report
    elif not (sys.stderr.isatty() and installed("rich")):
        yield lambda _what, _done, _total: None
    else:
        with _rich_line() as line:
            yield line


@contextlib.contextmanager
def _rich_line() -> Iterator[Report]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        SpinnerColumn,
        TextColumn,
        TimeElapsedColumn,
    )

    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(20),
               MofNCompleteColumn(), TimeElapsedColumn())  # fmt: skip
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("start", total=1)

        def report(what: str, done: int, total: int) -> None:
            progress.update(task, description=what, completed=done, total=total)

        yield report
