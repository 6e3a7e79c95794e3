"""The pairs of the table, architecture times target, and what is recorded of each."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .architectures import Architecture

ENGINES = {
    "torch": "torch:cpu:{}",
    "onnxruntime": "onnxruntime:cpu:{}",
    "openvino": "openvino:cpu:{}",
    "coreml": "coreml:cpu:{}",
    "tensorrt": "tensorrt:gpu:{}:sm89",
}
FLOATS = ("fp32", "fp16")
INT8 = ("onnxruntime", "openvino")
PASSED, FAILED, CRASHED = "passed", "failed", "crashed"


@dataclass(frozen=True)
class Result:
    """How one pair went: figures where it passed, else the error that a user gets."""

    architecture: str
    target: str
    status: str
    seconds: float
    fingerprint: str
    checked_on: str = ""
    parity: float | None = None
    """Largest relative rms of an output against the program in PyTorch."""
    fidelity: float | None = None
    """The same against fp32; the metric's value (cosine) for int8."""
    float_layers: tuple[str, ...] = ()
    error: str = ""
    message: str = ""

    @property
    def engine(self) -> str:
        """The first part of the target."""
        return self.target.partition(":")[0]

    @property
    def precision(self) -> str:
        """The third part of the target."""
        return self.target.split(":")[2]


def targets_of(row: Architecture, engines: Iterable[str]) -> list[str]:
    """The targets that the table has for a row."""
    made = [ENGINES[e].format(p) for e in engines for p in FLOATS]
    return made + [ENGINES[e].format("int8") for e in engines if e in INT8 and row.int8]


def fingerprint(row: Architecture, versions: Mapping[str, str]) -> str:
    """Changes with the row's model and with the packages: then its pairs are built again."""
    text = json.dumps([asdict(row), dict(versions)], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


class Results:
    """The results of all pairs, kept in a JSON file that is replaced as a whole."""

    def __init__(self, file: Path) -> None:
        self.file = file
        data = json.loads(file.read_text()) if file.is_file() else {"results": []}
        loaded = [
            Result(**{**row, "float_layers": tuple(row["float_layers"])}) for row in data["results"]
        ]
        self.rows = {(row.architecture, row.target): row for row in loaded}

    def get(self, name: str, target: str) -> Result | None:
        """What is known of a pair."""
        return self.rows.get((name, target))

    def add(self, result: Result) -> None:
        """Record a pair in place of what was known of it."""
        self.rows[result.architecture, result.target] = result

    def save(self, about: Mapping[str, Any]) -> None:
        """Write the file: `about` and the results, sorted."""
        rows = [asdict(self.rows[key]) for key in sorted(self.rows)]
        text = json.dumps({**about, "results": rows}, indent=1, ensure_ascii=False)
        temporary = self.file.with_suffix(".part")
        temporary.write_text(text + "\n")
        temporary.replace(self.file)

    def keep(self, pairs: Collection[tuple[str, str]]) -> None:
        """Forget pairs that the table no longer has."""
        self.rows = {key: row for key, row in self.rows.items() if key in pairs}
