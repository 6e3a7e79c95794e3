"""What the drivers share; they run in the peers' environments, which lack the SDK."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Order:
    """What a driver is asked for."""

    model: Path
    """An fp32 ONNX file whose only input has a batch axis."""
    calibration: np.ndarray[Any, Any]
    """All calibration inputs, N first."""
    input: str
    output: Path
    """The file to write."""

    def batches(self, size: int = 1) -> Iterator[dict[str, np.ndarray[Any, Any]]]:
        """The calibration inputs as feeds."""
        for start in range(0, len(self.calibration), size):
            yield {self.input: self.calibration[start : start + size]}


def order() -> Order:
    """Read the command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--calibration", type=Path, required=True, help="an .npy file")
    parser.add_argument("--input", required=True)
    parser.add_argument("--output", type=Path, required=True)
    given = parser.parse_args()
    return Order(given.model, np.load(given.calibration), given.input, given.output)
