"""What the verbs print: results on stdout as tables or as one JSON document, the rest on stderr."""

from __future__ import annotations

import contextlib
import functools
import inspect
import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import typer
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from sdk.errors import EdgeError
from sdk.progress import Report
from sdk.structure import to_json

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]
PIPE_WIDTH = 200
LOG_SECONDS = 10.0
INTERRUPTED = 130  # exit code, as shells have it


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a verb found: `document` for `--json`, `view` for people, `ok=False` for exit code 1."""

    document: Any
    view: Callable[[], Iterable[RenderableType]]
    ok: bool = True


def verb(function: Callable[..., Answer]) -> Callable[..., None]:
    """Give `function` the option `--json`, print its answer and set the exit code."""

    @functools.wraps(function)
    def run(*, as_json: bool, **options: Any) -> None:
        try:
            with _reserved_stdout(as_json):
                answer = function(**options)
        except KeyboardInterrupt as stop:
            for note in getattr(stop, "__notes__", ["Interrupted."]):
                say(note)
            raise typer.Exit(INTERRUPTED) from stop
        if as_json:
            print(json.dumps(to_json(answer.document), indent=1, ensure_ascii=False))
        else:
            _print_view(answer.view())
        if not answer.ok:
            raise typer.Exit(1)

    # typer reads the options from the signature and its annotations
    signature = inspect.signature(function, eval_str=True)
    option = inspect.Parameter(
        "as_json", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=Json
    )
    parameters = [*signature.parameters.values(), option]
    run.__signature__ = signature.replace(parameters=parameters, return_annotation=None)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> Table:
    """A table whose columns of numbers, marked by a leading `>`, stand to the right."""
    made = Table(title=title, title_justify="left", title_style="bold", show_header=any(columns))
    for column in columns:
        made.add_column(column.lstrip(">"), justify="right" if ">" in column else "left")
    for row in rows:
        made.add_row(*(Text(str(cell)) for cell in row))
    return made


def say(text: str) -> None:
    """One line of what is being done, or a note, on stderr."""
    _console(stderr=True).print(Text(text), soft_wrap=True)


def print_error(error: Exception) -> None:
    """What, expected, got and fix, on stderr."""
    text = Text.assemble(("error: ", "bold red"), str(error))
    _console(stderr=True).print(text, soft_wrap=True)
    if not isinstance(error, EdgeError):
        say("  fix: check the path, its permissions and the space on its disk")


def stages() -> Report | None:
    """A progress report for logs: a line for each new stage, and one now and then within a stage.

    None on a terminal: it has a bar. Two reports that differ in figures alone are one stage.
    """
    if sys.stderr.isatty():
        return None
    stage, told = "", 0.0

    def report(what: str, done: int, total: int) -> None:
        nonlocal stage, told
        words = re.sub(r"[\d.]+", "", what)
        if words != stage or time.monotonic() - told > LOG_SECONDS:
            stage, told = words, time.monotonic()
            say(f"... {what} ({done}/{total})" if total > 1 else f"... {what}")

    return report


def size(count: float) -> str:
    """Bytes for people."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"


def duration(microseconds: float) -> str:
    """A wall time for people."""
    if microseconds < 1e3:
        return f"{microseconds:.0f} us"
    return f"{microseconds / 1e3:.2f} ms" if microseconds < 1e6 else f"{microseconds / 1e6:.2f} s"


def _print_view(view: Iterable[RenderableType]) -> None:
    console = _console(stderr=False)
    for part in view:
        console.print(part, soft_wrap=isinstance(part, str), markup=False)


def _console(*, stderr: bool) -> Console:
    """Made for each use: the streams are those of now. A pipe is not cut at 80 columns."""
    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() else PIPE_WIDTH
    return Console(file=stream, width=width, highlight=False)


@contextlib.contextmanager
def _reserved_stdout(wanted: bool) -> Iterator[None]:
    """While the verb works, whatever it, an engine or the user's model prints goes to stderr."""
    if not wanted:
        yield
        return
    sys.stdout.flush()
    saved = os.dup(1)
    os.dup2(2, 1)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        os.dup2(saved, 1)
        os.close(saved)
