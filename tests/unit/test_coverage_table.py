"""The coverage table: its page, its memory, and children that die."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from coverage.architectures import ARCHITECTURES
from coverage.pairs import CRASHED, FAILED, PASSED, Result, Results, fingerprint, targets_of
from coverage.run import run_row
from coverage.table import page

ABOUT = {"command": "c", "date": "2026-01-01", "machine": "m", "versions": {"torch": "2"}}
BERT = ARCHITECTURES[0]


def result(target: str, status: str = PASSED, **values: object) -> Result:
    return Result("BERT", target, status, 1.0, "mark", **values)  # type: ignore[arg-type]


def test_page_counts_and_explains() -> None:
    rows = [
        result("onnxruntime:cpu:fp32", parity=2e-7, checked_on="engine"),
        result("onnxruntime:cpu:fp16", FAILED, error="ParityError", message="It is off.\n  got: 1"),
        result("openvino:cpu:fp32", CRASHED, error="crash", message="SIGSEGV at x"),
        result("onnxruntime:cpu:int8", fidelity=0.9991, float_layers=("a", "b")),
    ]
    text = page(ABOUT, rows)
    assert "| onnxruntime | fp32 and fp16 | 1 | 2 | 50% | engine |" in text
    assert "| openvino | fp32 and fp16 | 0 | 1 | 0% |  |" in text
    assert "| text encoder | BERT |  |  | 2e-07 | **a** | **b** |" in text
    assert "0.9991 (2 float)" in text
    assert "**a**: BERT on `onnxruntime:cpu:fp16`\n\n```\nParityError: It is off.\n  got: 1" in text


def test_results_are_kept_and_forgotten(tmp_path: Path) -> None:
    results = Results(tmp_path / "coverage.json")
    rows = [result("torch:cpu:fp32", float_layers=("a",)), result("torch:cpu:int8")]
    for row in rows:
        results.add(row)
    results.save(ABOUT)
    again = Results(tmp_path / "coverage.json")
    assert again.get("BERT", "torch:cpu:fp32") == rows[0]
    again.keep({("BERT", "torch:cpu:fp32")})
    assert again.get("BERT", "torch:cpu:int8") is None


def test_changed_row_is_built_again() -> None:
    other = dataclasses.replace(BERT, settings={**BERT.settings, "hidden_size": 64})
    marks = {fingerprint(BERT, {"torch": "1"}), fingerprint(BERT, {"torch": "2"}),
             fingerprint(other, {"torch": "1"})}  # fmt: skip
    assert len(marks) == 3


def test_int8_is_for_encoders() -> None:
    assert "onnxruntime:cpu:int8" in targets_of(BERT, ["onnxruntime"])
    (decoder,) = (row for row in ARCHITECTURES if row.name == "Llama")
    assert targets_of(decoder, ["onnxruntime"]) == ["onnxruntime:cpu:fp32", "onnxruntime:cpu:fp16"]


def test_names_are_told_apart() -> None:
    assert len({row.name for row in ARCHITECTURES}) == len(ARCHITECTURES) >= 37


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "limits", "reason"),
    [
        ("no such row", {"seconds": 60, "bytes_": 1 << 33}, "exit code 1 at capture"),
        ("BERT", {"seconds": 0.5, "bytes_": 1 << 33}, "more than 0 seconds at capture"),
        ("BERT", {"seconds": 60, "bytes_": 1 << 20}, "more than 1 MiB at capture"),
    ],
)
def test_child_that_dies_is_a_result(name: str, limits: dict[str, float], reason: str) -> None:
    found: list[Result] = []
    row = dataclasses.replace(BERT, name=name)
    run_row(row, ["torch:cpu:fp32", "torch:cpu:fp16"], "mark", found.append, **limits)  # type: ignore[arg-type]
    assert [r.target for r in found] == ["torch:cpu:fp32", "torch:cpu:fp16"]
    assert all(r.status == CRASHED and r.message.startswith(reason) for r in found)
