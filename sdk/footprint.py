"""Load time, warm-up and memory of an artifact, measured in a process of its own.

A process that has loaded the engine before, or torch, tells neither what a cold start costs nor
what the model adds to the memory. `python -m sdk.footprint` is that process.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from sdk.errors import EngineError
from sdk.structure import from_json, to_json

T = TypeVar("T")
CALLS, SECONDS, TIMEOUT = 50, 3.0, 300.0
STEADY = 1.10  # of the median of the second half of the calls


@dataclass(frozen=True, slots=True, kw_only=True)
class Footprint:
    """A cold start. Memory is resident bytes of the process; 0 where the system does not tell."""

    engine_ms: float
    """Import of the engine's library."""
    load_ms: float
    """Open, verify and load the artifact."""
    calls: tuple[float, ...]
    """Wall times of the first calls, in microseconds."""
    resident_start: int
    """Python, NumPy and the SDK."""
    resident_engine: int
    resident_loaded: int
    resident_peak: int
    """The most that was resident during the calls."""

    @property
    def first_call(self) -> float:
        """Microseconds of the first call."""
        return self.calls[0]

    @property
    def calls_to_steady(self) -> int:
        """Calls before the first five whose median is within 10 % of the later calls'."""
        level = statistics.median(self.calls[len(self.calls) // 2 :]) * STEADY
        windows = range(len(self.calls))
        return next((i for i in windows if statistics.median(self.calls[i : i + 5]) <= level), 0)


def measure(path: Path, *, device: str, threads: int) -> Footprint:
    """Load the artifact in a fresh Python process and call it; EngineError where that fails."""
    command = [sys.executable, "-m", "sdk.footprint", str(path), device, str(threads)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, check=True)
    except (subprocess.SubprocessError, OSError) as error:
        detail = getattr(error, "stderr", None) or str(error)
        raise EngineError(
            "The cold start could not be measured in a process of its own.",
            got=detail.strip()[-500:],
            fix="check that `python -m sdk.footprint` starts with this interpreter",
        ) from error
    return from_json(Footprint, json.loads(done.stdout.splitlines()[-1]), "cold start")


def main(arguments: Sequence[str]) -> None:
    """Measure this process: path, device and threads in, JSON on the last line out."""
    path, device, threads = Path(arguments[0]), arguments[1], int(arguments[2])
    from sdk.artifact import Artifact
    from sdk.feeds import golden_feed
    from sdk.model import load
    from sdk.runtimes import probe
    from sdk.target import Target

    artifact = Artifact.open(path)
    start = resident()
    engine_ms, _ = _timed(lambda: probe(Target.parse(artifact.manifest.target).engine))
    engine = resident()
    load_ms, model = _timed(lambda: load(path, device=device, fallback="allow", threads=threads))
    loaded, feed = resident(), golden_feed(artifact)
    _reset_peak()
    calls = _cold_calls(lambda: model.predict(feed))
    measured = Footprint(
        engine_ms=engine_ms,
        load_ms=load_ms,
        calls=tuple(calls),
        resident_start=start,
        resident_engine=engine,
        resident_loaded=loaded,
        resident_peak=resident(peak=True),
    )
    sys.stdout.write("\n" + json.dumps(to_json(measured)) + "\n")


def resident(*, peak: bool = False) -> int:
    """Resident bytes of this process, now or at most since the last reset; 0 where unknown."""
    key = "VmHWM:" if peak else "VmRSS:"
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(key)), 0)


def _reset_peak() -> None:
    """Linux forgets the peak so far on this write; where it may not, loading counts as well."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def _timed(call: Callable[[], T]) -> tuple[float, T]:
    start = time.perf_counter_ns()
    result = call()
    return (time.perf_counter_ns() - start) / 1e6, result


def _cold_calls(call: Callable[[], object]) -> list[float]:
    """Microseconds of the first calls: at most `CALLS`, or for `SECONDS`, but at least 5."""
    times: list[float] = []
    end = time.perf_counter() + SECONDS
    while len(times) < CALLS and (len(times) < 5 or time.perf_counter() < end):
        milliseconds, _ = _timed(call)
        times.append(milliseconds * 1e3)
    return times


if __name__ == "__main__":
    main(sys.argv[1:])
