"""`python -m tests.coverage`: run what is missing, changed or failed, and write docs/coverage.*."""

from __future__ import annotations

import argparse
import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sdk.environment import versions

from .architectures import ARCHITECTURES, Architecture
from .pairs import ENGINES, PASSED, Result, Results, fingerprint, targets_of
from .run import ROOT, run_row
from .table import page

PACKAGES = ("torch", "transformers", "onnx", "onnxscript", "onnxruntime", "openvino", "coremltools",
            "tensorrt-rtx", "torchao", "numpy")  # fmt: skip
COMMAND = "python -m tests.coverage"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run and write."""
    options = _parser().parse_args(arguments)
    rows = [row for row in ARCHITECTURES if not options.only or row.name in options.only]
    results = Results(options.docs / "coverage.json")
    known = versions(PACKAGES)
    for row in rows:
        mark = fingerprint(row, known)
        targets = [
            target
            for target in targets_of(row, options.engine)
            if (not options.precision or target.split(":")[2] in options.precision)
            and _due(results.get(row.name, target), mark, options.retry)
        ]
        _run(row, targets, mark, results, options)
    results.keep(_all_pairs())
    about = _about(known)
    results.save(about)
    (options.docs / "coverage.md").write_text(page(about, list(results.rows.values())))


def _run(row: Architecture, targets: list[str], mark: str, results: Results, options: Any) -> None:
    """The row's targets; each result is on disk before the next begins."""

    def record(result: Result) -> None:
        results.add(result)
        results.save(_about(versions(PACKAGES)))
        line = (result.message.splitlines() or [""])[0]
        said = f"{result.parity:.1e}" if result.parity is not None else f"{result.error}: {line}"
        print(f"{row.name} {result.target} {result.status} {result.seconds} s {said}", flush=True)

    run_row(row, targets, mark, record, seconds=options.seconds, bytes_=options.mib << 20)


def _due(result: Result | None, mark: str, retry: str) -> bool:
    """Whether a pair is to be built: new, changed, or asked for again."""
    if result is None or result.fingerprint != mark or retry == "all":
        return True
    return retry == "failed" and result.status != PASSED


def _all_pairs() -> set[tuple[str, str]]:
    return {(row.name, target) for row in ARCHITECTURES for target in targets_of(row, ENGINES)}


def _about(known: dict[str, str]) -> dict[str, Any]:
    return {
        "command": COMMAND,
        "date": datetime.now(UTC).date().isoformat(),
        "machine": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "versions": known,
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__)
    names = [row.name for row in ARCHITECTURES]
    parser.add_argument("--only", nargs="+", choices=names, metavar="NAME", help="architectures")
    parser.add_argument("--engine", nargs="+", choices=list(ENGINES), default=list(ENGINES))
    parser.add_argument("--precision", nargs="+", choices=["fp32", "fp16", "int8"])
    parser.add_argument("--retry", choices=["new", "failed", "all"], default="new")
    parser.add_argument("--seconds", type=float, default=600, help="limit for one pair")
    parser.add_argument("--mib", type=int, default=8192, help="memory limit of the child")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs", help="folder of the results")
    return parser


if __name__ == "__main__":
    main()
