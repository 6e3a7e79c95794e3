"""The figures against closed forms, and what must never pass."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given, strategies as st
from hypothesis.extra.numpy import arrays

from sdk.parity import TOLERANCE, OutputParity, Tolerance, compare

FP32 = TOLERANCE["fp32"]
WAVE = np.sin(np.linspace(0, 20 * np.pi, 10_000, endpoint=False))


def one(got: Any, want: Any, tolerance: Tolerance = FP32) -> OutputParity:
    """The report of a single output; the report as a whole agrees with it."""
    report = compare({"y": np.asarray(got)}, {"y": np.asarray(want)}, tolerance)
    (output,) = report.outputs
    assert report.ok == output.ok
    return output


@pytest.mark.parametrize("error", [1e-1, 1e-3, 1e-6])
def test_figures_of_orthogonal_noise(error: float) -> None:
    """sin + e cos against sin: rms e, SQNR -20 log10 e, cosine 1/sqrt(1 + e^2)."""
    noise = np.cos(np.linspace(0, 20 * np.pi, 10_000, endpoint=False))
    found = one(WAVE + error * noise, WAVE)
    assert found.max_abs == pytest.approx(error)
    assert found.rms == pytest.approx(error)
    assert found.worst == pytest.approx(error)
    assert found.sqnr_db == pytest.approx(-20 * math.log10(error))
    assert found.cosine == pytest.approx(1 / math.sqrt(1 + error**2))
    assert found.ok == (error < FP32.rms)


def test_uniform_rounding_has_the_textbook_sqnr() -> None:
    """A full-scale sine rounded to B bits: 6.02 B + 1.76 dB."""
    step = 2 / 2**8
    found = one(np.round(WAVE / step) * step, WAVE)
    assert found.sqnr_db == pytest.approx(6.02 * 8 + 1.76, abs=0.3)


def test_an_offset_cannot_hide_an_error() -> None:
    """1 % of the variation stays 1 % when the mean is 50 times the variation."""
    wrong = WAVE[::-1]
    plain, shifted = one(WAVE + 0.01 * wrong, WAVE), one(50 + WAVE + 0.01 * wrong, 50 + WAVE)
    assert shifted.rms == pytest.approx(plain.rms)
    assert not shifted.ok


@pytest.mark.parametrize("value", [0.1, 1 / 3, 123.456, 1e-3, -7.7])
@pytest.mark.parametrize("count", [1, 2, 3, 1000])
def test_constant_outputs_are_judged_by_their_size(value: float, count: int) -> None:
    """Their variation is nothing but the rounding of their mean."""
    want = np.full(count, value, np.float32)
    assert one(np.nextafter(want, np.float32(np.inf)), want).ok
    assert not one(want * np.float32(1.01), want).ok


def test_zeros_allow_rounding_only() -> None:
    zeros = np.zeros(5, np.float32)
    assert one(zeros, zeros).ok
    assert one(zeros + np.float32(1e-12), zeros).ok
    assert not one(zeros + np.float32(1e-6), zeros).ok
    assert one(zeros, zeros).cosine == 1.0
    assert one(zeros + 1, zeros).cosine == 0.0


@pytest.mark.parametrize("shape", [(0,), (0, 4)])
def test_empty_outputs_are_equal(shape: tuple[int, ...]) -> None:
    found = one(np.zeros(shape, np.float32), np.zeros(shape, np.float32))
    assert found.ok
    assert (found.max_abs, found.rms, found.sqnr_db) == (0.0, 0.0, math.inf)


def test_nothing_compared_is_no_evidence() -> None:
    report = compare({}, {}, FP32)
    assert not report.ok
    never = np.full(3, np.nan, np.float32)
    assert not one(never, never).ok


@pytest.mark.parametrize(
    ("got", "want", "ok"),
    [
        ([np.nan, 1.0, 2.0], [np.nan, 1.0, 2.0], True),
        ([np.inf, 1.0, 2.0], [np.inf, 1.0, 2.0], True),
        ([-np.inf, 1.0, 2.0], [np.inf, 1.0, 2.0], False),
        ([np.nan, 1.0, 2.0], [np.inf, 1.0, 2.0], False),
        ([np.nan, 1.0, 2.0], [0.0, 1.0, 2.0], False),
        ([0.0, 1.0, 2.0], [np.nan, 1.0, 2.0], False),
        ([1.0, np.nan, 2.0], [np.nan, 1.0, 2.0], False),
        ([np.nan, 1.0, 3.0], [np.nan, 1.0, 2.0], False),
    ],
)
def test_nan_and_infinity_stand_at_the_same_places(
    got: list[float], want: list[float], ok: bool
) -> None:
    assert one(np.float32(got), np.float32(want)).ok == ok


@pytest.mark.parametrize(
    ("got", "note"),
    [
        (np.zeros((2, 3), np.float32), r"shape \[2, 3\], expected \[3, 2\]"),
        (np.zeros(6, np.float32), "shape"),
        (np.zeros((3, 2), np.float64), "dtype float64, expected float32"),
        (np.zeros((3, 2), np.int32), "dtype"),
    ],
)
def test_shape_and_dtype_are_part_of_the_value(got: Any, note: str) -> None:
    found = one(got, np.zeros((3, 2), np.float32))
    assert not found.ok
    assert re.search(note, found.note)
    assert found.rms == math.inf
    assert found.sqnr_db == -math.inf


def test_a_missing_output_fails() -> None:
    report = compare({}, {"y": np.zeros(1, np.float32)}, FP32)
    assert not report.ok
    assert report.outputs[0].note == "missing"


def test_swapped_outputs_are_named() -> None:
    a, b = WAVE.astype(np.float32), np.float32(WAVE**2)
    report = compare({"a": b, "b": a}, {"a": a, "b": b}, FP32)
    assert not report.ok
    assert [output.note for output in report.outputs] == [
        "carries the values of output 'b': outputs are swapped",
        "carries the values of output 'a': outputs are swapped",
    ]


def test_equal_outputs_are_not_called_swapped() -> None:
    wave = WAVE.astype(np.float32)
    assert compare({"a": wave, "b": wave}, {"a": wave, "b": wave}, FP32).ok


def test_the_worst_output_is_a_failing_one() -> None:
    wave = WAVE.astype(np.float32)
    tolerance = Tolerance(rms=1.0, worst=0.5)
    spike = wave.copy()
    spike[0] += 0.6
    report = compare({"a": wave * 1.4, "b": spike}, {"a": wave, "b": wave}, tolerance)
    assert [output.ok for output in report.outputs] == [True, False]
    assert report.worst.name == "b"


@pytest.mark.parametrize("dtype", ["int64", "int32", "uint8", "bool"])
def test_integer_outputs(dtype: str) -> None:
    want = np.arange(100).astype(dtype)
    assert one(want, want).ok
    wrong = want.copy()
    wrong[50:] = want[49:99]
    assert one(wrong, want).ok == np.array_equal(wrong, want)


VALUES = arrays(
    np.float32, st.integers(1, 20), elements=st.floats(-1e6, 1e6, width=32, allow_nan=False)
)


@given(VALUES)
def test_equal_values_always_pass(values: Any) -> None:
    found = one(values, values.copy())
    assert found.ok
    assert found.sqnr_db == math.inf


@given(VALUES, st.integers(0, 19), st.floats(0.01, 1e3))
def test_a_large_error_never_passes(values: Any, place: int, factor: float) -> None:
    """An element off by more than `worst` of the largest."""
    wrong = values.copy()
    wrong[place % len(values)] += np.float32(factor * max(np.abs(values).max(), 1e-3))
    assert not one(wrong, values).ok
