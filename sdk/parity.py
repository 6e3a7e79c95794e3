"""Is the compiled model the model? One comparison, used when compiling, on the device, in tests.

Two figures decide, both per output tensor over all checked batches:

- relative RMS error `rms(got - want) / rms(want - mean(want))`; SQNR in dB is -20 log10 of it;
- worst element `max|got - want| / max|want|`.

The mean is taken out of the denominator so that a constant offset cannot hide an error. An output
that varies by less than a thousandth of its size is judged by its size: below lies rounding.
NaN and infinity must stand at the same places.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sdk.signature import Array

Values = NDArray[np.float64]

__all__ = ["TOLERANCE", "OutputParity", "ParityReport", "Tolerance", "compare"]


@dataclass(frozen=True, slots=True)
class Tolerance:
    """Upper bounds of the two figures; both are ratios."""

    rms: float
    worst: float


# Same numbers, another engine: what rounding at that precision may cost through a deep network.
# For a quantized program the reference is that program itself, so that in static precisions only
# ties between steps may differ. Weight-only kernels put activations on an int8 grid of their own:
# measured 0.006 to 0.015 through 5 to 16 layers of a Llama on ONNX Runtime and OpenVINO.
TOLERANCE = {
    "fp32": Tolerance(rms=1e-4, worst=1e-3),
    "fp16": Tolerance(rms=2e-2, worst=5e-2),
    "bf16": Tolerance(rms=6e-2, worst=1.5e-1),
    "int8": Tolerance(rms=1e-1, worst=2e-1),
    "a16w8": Tolerance(rms=2e-2, worst=5e-2),
    "fp8": Tolerance(rms=1e-1, worst=2e-1),
    "w8": Tolerance(rms=5e-2, worst=1e-1),
    "int4": Tolerance(rms=5e-2, worst=1e-1),
    "int2": Tolerance(rms=5e-2, worst=1e-1),
    "pal6": Tolerance(rms=2e-2, worst=5e-2),
    "pal4": Tolerance(rms=2e-2, worst=5e-2),
}

# Lower precision against the fp32 model, where the caller gives no metric of its own. Measured on
# Llamas: w8 0.01 to 0.02, int4 0.1 to 0.22, int2 by hqq 0.4 on a trained one, 1 on random weights.
FIDELITY = {
    "fp32": Tolerance(rms=1e-4, worst=1e-3),
    "fp16": Tolerance(rms=2e-2, worst=5e-2),
    "bf16": Tolerance(rms=6e-2, worst=1.5e-1),
    "int8": Tolerance(rms=3e-1, worst=5e-1),
    "a16w8": Tolerance(rms=3e-1, worst=5e-1),
    "fp8": Tolerance(rms=3e-1, worst=5e-1),
    "w8": Tolerance(rms=5e-2, worst=1e-1),
    "int4": Tolerance(rms=3e-1, worst=5e-1),
    "int2": Tolerance(rms=5e-1, worst=8e-1),
    "pal6": Tolerance(rms=1e-1, worst=2e-1),
    "pal4": Tolerance(rms=3e-1, worst=5e-1),
}


@dataclass(frozen=True, slots=True)
class OutputParity:
    """The figures of one output."""

    name: str
    max_abs: float
    rms: float
    worst: float
    cosine: float
    ok: bool
    note: str = ""

    @property
    def sqnr_db(self) -> float:
        """The relative rms in dB: infinite where the values are equal."""
        return -20 * math.log10(self.rms) if self.rms else math.inf

    def __str__(self) -> str:
        figures = f"max abs {self.max_abs:.3g}, relative rms {self.rms:.3g}"
        tail = f" ({self.note})" if self.note else ""
        return f"{self.name}: {figures}, worst {self.worst:.3g}, SQNR {self.sqnr_db:.1f} dB{tail}"


@dataclass(frozen=True, slots=True)
class ParityReport:
    """Figures of all outputs against one tolerance."""

    tolerance: Tolerance
    outputs: tuple[OutputParity, ...]

    @property
    def ok(self) -> bool:
        """Whether there are outputs and every one is within the tolerance."""
        return bool(self.outputs) and all(output.ok for output in self.outputs)

    @property
    def worst(self) -> OutputParity:
        """The output with the largest relative error."""
        return max(self.outputs, key=lambda output: (not output.ok, output.rms))

    def __str__(self) -> str:
        return "; ".join(map(str, self.outputs))


def compare(
    got: Mapping[str, Array], want: Mapping[str, Array], tolerance: Tolerance
) -> ParityReport:
    """Compare named outputs; `want` is the reference and gives the names and their order."""
    reports = [_compare_one(name, got.get(name), want[name], tolerance) for name in want]
    if len(reports) > 1 and not all(report.ok for report in reports):
        reports = [_note_swap(report, got, want, tolerance) for report in reports]
    return ParityReport(tolerance, tuple(reports))


def _compare_one(name: str, got: Array | None, want: Array, tolerance: Tolerance) -> OutputParity:
    if got is None:
        return _failed(name, "missing")
    if got.shape != want.shape:
        return _failed(name, f"shape {list(got.shape)}, expected {list(want.shape)}")
    if got.dtype != want.dtype:
        return _failed(name, f"dtype {got.dtype}, expected {want.dtype}")
    a, b = np.asarray(got, np.float64), np.asarray(want, np.float64)
    finite = np.isfinite(b)
    if not (np.isfinite(a) == finite).all() or not np.array_equal(
        a[~finite], b[~finite], equal_nan=True
    ):
        return _failed(name, "NaN or infinity where the reference has none, or the reverse")
    if b.size and not finite.any():
        return _failed(name, "no finite value in the reference: nothing to compare")
    return _figures(name, a[finite], b[finite], tolerance)


def _figures(name: str, a: Values, b: Values, tolerance: Tolerance) -> OutputParity:
    """Figures of two finite vectors of equal length."""
    error = a - b
    max_abs = float(np.abs(error).max(initial=0.0))
    spread = float(np.sqrt(np.mean((b - b.mean()) ** 2))) if b.size > 1 else 0.0
    peak = float(np.abs(b).max(initial=0.0))
    scale = spread if spread > peak / 1000 else peak
    rms = _ratio(float(np.sqrt(np.mean(error**2))) if b.size else 0.0, scale)
    worst = _ratio(max_abs, peak)
    norms = float(np.linalg.norm(a) * np.linalg.norm(b))
    return OutputParity(
        name=name,
        max_abs=max_abs,
        rms=rms,
        worst=worst,
        cosine=float(np.vdot(a, b)) / norms if norms else float(max_abs == 0),
        ok=rms <= tolerance.rms and worst <= tolerance.worst,
    )


def _ratio(error: float, scale: float) -> float:
    """error / scale, where a reference of zeros allows errors of float rounding only."""
    return error / max(scale, 1e-6)


def _failed(name: str, note: str) -> OutputParity:
    inf = math.inf
    return OutputParity(name, inf, inf, inf, 0.0, ok=False, note=note)


def _note_swap(
    report: OutputParity,
    got: Mapping[str, Array],
    want: Mapping[str, Array],
    tolerance: Tolerance,
) -> OutputParity:
    """Say so when a failing output carries the values of another output."""
    if report.ok or report.name not in got:
        return report
    for other in want:
        if (
            other != report.name
            and _compare_one(other, got[report.name], want[other], tolerance).ok
        ):
            note = f"carries the values of output {other!r}: outputs are swapped"
            return _failed(report.name, note)
    return report
