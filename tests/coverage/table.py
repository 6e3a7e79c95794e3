"""The results as a page: counts, the table, and each failure in the words that a user gets."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from .architectures import ARCHITECTURES
from .pairs import ENGINES, FLOATS, INT8, PASSED, Result

COLUMNS = [(engine, precision) for engine in ENGINES for precision in FLOATS]
COLUMNS += [(engine, "int8") for engine in INT8]
INTRODUCTION = """\
# Coverage of model architectures

Each cell is one run of `sdk.compile` with its gates: a small model of that architecture with random
weights, on its example inputs and on inputs of two other sizes. A number is a pass, and the largest
relative rms error of an output against the same program in PyTorch; for int8 the lowest cosine of
an output with fp32 (at least 0.99, the caller's metric), with the layers left in float behind it. A
letter is a failure, explained below in the words that a user gets. An empty cell was not run.

"Checked on" says what the build ran on here: the engine itself, or what stands in for it where this
machine cannot run it.
"""


def page(about: Mapping[str, Any], results: Sequence[Result]) -> str:
    """The whole page in Markdown."""
    found = {(r.architecture, r.engine, r.precision): r for r in results}
    marks = _marks(results)
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    parts = [
        INTRODUCTION,
        f"Made by `{about['command']}` on {about['date']} ({about['machine']}) with {versions}.\n",
        _counts(results),
        _grid(found, marks),
        "## Failures\n",
        *_failures(marks, results),
    ]
    return "\n".join(parts).rstrip() + "\n"


def _counts(results: Sequence[Result]) -> str:
    groups: dict[tuple[str, str], list[Result]] = defaultdict(list)
    for result in results:
        kind = "int8" if result.precision == "int8" else "fp32 and fp16"
        groups[result.engine, kind].append(result)
    lines = ["| engine | precision | passed | pairs | | checked on |", "|---|---|--:|--:|--:|---|"]
    for engine in ENGINES:
        for kind in ("fp32 and fp16", "int8"):
            rows = groups.get((engine, kind), [])
            if rows:
                passed = sum(row.status == PASSED for row in rows)
                places = sorted({row.checked_on for row in rows if row.checked_on})
                figures = f"{passed} | {len(rows)} | {passed / len(rows):.0%}"
                lines.append(f"| {engine} | {kind} | {figures} | {', '.join(places)} |")
    return "\n".join(lines) + "\n"


def _grid(found: Mapping[tuple[str, str, str], Result], marks: Mapping[str, str]) -> str:
    head = " | ".join(f"{engine} {precision}" for engine, precision in COLUMNS)
    lines = [f"| kind | architecture | {head} |", "|---|---|" + "--:|" * len(COLUMNS)]
    for row in ARCHITECTURES:
        cells = (_cell(found.get((row.name, *column)), marks) for column in COLUMNS)
        lines.append(f"| {row.kind} | {row.name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _cell(result: Result | None, marks: Mapping[str, str]) -> str:
    if result is None:
        return ""
    if result.status != PASSED:
        return f"**{marks[_reason(result)]}**"
    if result.precision == "int8" and result.fidelity is not None:
        kept = f" ({len(result.float_layers)} float)" if result.float_layers else ""
        return f"{result.fidelity:.4f}{kept}"
    return f"{result.parity:.0e}"


def _reason(result: Result) -> str:
    """What failures share: the error and the first line of its message."""
    return f"{result.error}: {(result.message.splitlines() or [''])[0]}"


def _marks(results: Sequence[Result]) -> dict[str, str]:
    """A letter for each reason, in order of appearance in the table."""
    order = {row.name: index for index, row in enumerate(ARCHITECTURES)}
    failed = [result for result in results if result.status != PASSED]
    failed.sort(
        key=lambda r: (order.get(r.architecture, 0), COLUMNS.index((r.engine, r.precision)))
    )
    reasons = dict.fromkeys(_reason(result) for result in failed)
    return {reason: _letter(index) for index, reason in enumerate(reasons)}


def _letter(index: int) -> str:
    return (_letter(index // 26 - 1) if index >= 26 else "") + chr(ord("a") + index % 26)


def _failures(marks: Mapping[str, str], results: Sequence[Result]) -> Iterator[str]:
    for reason, letter in marks.items():
        rows = [r for r in results if r.status != PASSED and _reason(r) == reason]
        where = ", ".join(f"{row.architecture} on `{row.target}`" for row in rows)
        yield f"**{letter}**: {where}\n\n```\n{rows[0].error}: {rows[0].message.strip()}\n```\n"
    if not marks:
        yield "None.\n"
