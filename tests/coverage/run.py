"""Run the pairs: one child process at a time, with limits of time and memory."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from .architectures import Architecture
from .pairs import CRASHED, Result

PAGE = os.sysconf("SC_PAGE_SIZE")
ROOT = Path(__file__).parents[2]
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false",
              "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore"}  # fmt: skip
POLL = 0.2  # seconds


def run_row(
    row: Architecture,
    targets: Sequence[str],
    mark: str,
    record: Callable[[Result], None],
    *,
    seconds: float,
    bytes_: int,
) -> None:
    """Build the row for all targets; a child that dies is a result, and the rest gets a new one."""
    left = list(targets)
    while left:
        with closing(Child(row, left, seconds=seconds, bytes_=bytes_)) as child:
            for values in child.results():
                left.remove(values["target"])
                record(_result(row, mark, values))
            if child.died:
                for target in list(left) if child.begun == "capture" else [child.begun]:
                    left.remove(target)
                    record(_result(row, mark, {"target": target, **child.failure()}))


def _result(row: Architecture, mark: str, values: dict[str, Any]) -> Result:
    layers = tuple(values.pop("float_layers", ()))
    return Result(row.name, fingerprint=mark, float_layers=layers, **values)


class Child:
    """A running child, watched until it is done, dead, late or too large."""

    def __init__(
        self, row: Architecture, targets: Sequence[str], *, seconds: float, bytes_: int
    ) -> None:
        self.limit, self.bytes = seconds, bytes_
        self.begun, self.died = "capture", ""
        self.folder = tempfile.TemporaryDirectory()
        self.output, self.log = (Path(self.folder.name) / name for name in ("results", "log"))
        self.output.touch()
        command = [sys.executable, "-m", "tests.coverage.child", str(self.output), row.name]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [*command, *targets], cwd=ROOT, env={**os.environ, **ONE_THREAD},
                stdout=log, stderr=log, preexec_fn=lambda: os.nice(10),
            )  # fmt: skip
        self.since = time.monotonic()

    def results(self) -> Any:
        """The values of each finished target, as they come."""
        read = 0
        while True:
            ended = self.process.poll() is not None
            lines = self.output.read_text().split("\n")[:-1]
            for line in lines[read:]:
                values = json.loads(line)
                self.since = time.monotonic()
                self.begun = values.get("begun", self.begun)
                if "target" in values:
                    yield values
            read = len(lines)
            if ended:
                break
            self._enforce()
            time.sleep(POLL)
        code = self.process.returncode
        if not self.died and code != 0:
            self.died = signal.Signals(-code).name if code < 0 else f"exit code {code}"

    def elapsed(self) -> float:
        """Seconds in the target that it is at."""
        return time.monotonic() - self.since

    def failure(self) -> dict[str, Any]:
        """What is recorded of its death: the reason, and the end of what it printed."""
        words = self.log.read_text(errors="replace").strip().splitlines()[-3:]
        return {
            "status": CRASHED,
            "seconds": round(self.elapsed(), 1),
            "error": "crash",
            "message": "\n".join([f"{self.died} at {self.begun}", *words]),
        }

    def close(self) -> None:
        """End it, if it still runs, and remove its files."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self.folder.cleanup()

    def _enforce(self) -> None:
        if self.elapsed() > self.limit:
            self.died = f"more than {self.limit:.0f} seconds"
        elif self._resident() > self.bytes:
            self.died = f"more than {self.bytes >> 20} MiB"
        if self.died:
            self.process.kill()
            self.process.wait()

    def _resident(self) -> int:
        try:
            return int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]) * PAGE
        except (OSError, IndexError):
            return 0  # it has just ended
