"""What an artifact says of how it came about: candidates, manifest, and why a build was refused."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from sdk.artifact import GOLDEN, PLACEMENT, PROCESSOR, SOURCES
from sdk.errors import ParityError
from sdk.manifest import Candidate, Fidelity, Greedy, Placed
from sdk.parity import ParityReport
from sdk.processor import Processor
from sdk.runtimes.session import Session
from sdk.structure import to_json
from sdk.target import Target
from sdk.timing import Latency

if TYPE_CHECKING:
    from sdk.compilers.program import Build, Program
    from sdk.localize import Divergence


@dataclass(frozen=True, slots=True)
class Facts:
    """What an artifact needs of a program that was lowered already."""

    sha256: str
    float_layers: tuple[str, ...]
    settings: dict[str, str]
    golden: bytes
    """Packed inputs and reference outputs."""
    greedy: Greedy | None = None


@dataclass
class Built:
    """A candidate on its engine, and what was measured of it."""

    target: Target
    build: Build
    session: Session
    parity: ParityReport
    checked_on: str
    """One of `sdk.target.CHECKED_ON`: what the session is."""
    facts: Facts
    program: Program | None = None
    """None where the files were built in an earlier run."""
    fidelity: Fidelity | None = None
    latency: Latency | None = None
    walls: list[float] = field(default_factory=list)
    """Microseconds of the calls behind `latency`, one for each round of the interleaved run."""
    key: str | None = None
    """Its name in the cache of a search."""

    @property
    def bytes(self) -> int:
        """Size of the engine files."""
        files = (path for path in self.build.folder.rglob("*") if path.is_file())
        return sum(file.stat().st_size for file in files)


def candidate_of(built: Built, baseline: Built | None, *, kept: bool, reason: str) -> Candidate:
    """The manifest's row of a build."""
    speedup = None
    if built.latency is not None and baseline is not None and baseline.latency is not None:
        speedup = baseline.latency.p50 / built.latency.p50
    return Candidate(
        target=str(built.target),
        kept=kept,
        reason=reason,
        bytes=built.bytes,
        parity=built.parity.outputs,
        fidelity=built.fidelity,
        latency=built.latency,
        speedup=speedup,
        float_layers=built.facts.float_layers,
        checked_on=built.checked_on,
        settings=built.facts.settings,
        greedy=built.facts.greedy,
    )


def _sources(build: Build) -> str:
    rows = {name: [s.module, s.operator, s.line] for name, s in build.sources.items()}
    return json.dumps(rows, separators=(",", ":"))


def loss_of(built: Built, fidelity: Fidelity) -> str:
    """What a build that failed the fidelity gate lost, in a sentence."""
    if fidelity.metric is None:
        return f"{built.target} is too far from fp32"
    return (
        f"{built.target} loses too much: {fidelity.metric} {fidelity.measured:.4f} against "
        f"{fidelity.reference:.4f} at fp32, allowed drop {fidelity.max_drop}"
    )


def parity_error(what: str, report: ParityReport, found: Divergence | None) -> ParityError:
    """The error of a refused build: figures, bounds, and the operator where it begins."""
    where = f" First diverging operator: {found}." if found else ""
    limit = report.tolerance
    return ParityError(
        f"{what}.{where}",
        expected=f"relative rms <= {limit.rms:g} and worst <= {limit.worst:g} of each output",
        got=str(report),
        fix="look at that operator; for int8 check the calibration data or use keep_float=[...]",
        report=report,
    )


def provenance_of(source: str, built: Built, given: Mapping[str, str]) -> dict[str, str]:
    """Where a program came from, when and on what it was compiled, and what the caller adds."""
    return {
        "source": source,
        "program_sha256": built.facts.sha256,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "host": f"{platform.system()} {platform.machine()}",
        **given,
    }


def write_evidence(
    root: Path,
    built: Built,
    placed: Sequence[Placed],
    processor: Processor | None,
    files: Mapping[str, bytes],
) -> None:
    """Golden values, the nodes' sources, placement, processor and more files, beside it."""
    (root / GOLDEN).write_bytes(built.facts.golden)
    (root / SOURCES).write_text(_sources(built.build))
    table = json.dumps(to_json(tuple(placed)), separators=(",", ":"))
    (root / PLACEMENT).write_text(table)
    if processor is not None:
        (root / PROCESSOR).write_text(json.dumps(processor.to_json()))
    for name, data in files.items():
        (root / name).write_bytes(data)
