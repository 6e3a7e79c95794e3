"""`edge demo`: the tiny recipe through the engines, a table of every build, and a profile."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("accelerate", reason="the extra `recipes` is not installed")
pytest.importorskip("onnxruntime", reason="the extra `onnxruntime` is not installed")

import sdk
from sdk.cli import main
from sdk.recipes.mobilenet_kd import MobileNetKD

ENGINE = "onnxruntime"
SHORT = {"width": 0.25, "steps": 3, "finetune_steps": 0, "adapt_steps": 3, "teacher": "resnet8",
         "max_drop": 1.0, "calibration": 16, "engines": (ENGINE,)}  # fmt: skip


@pytest.mark.slow
def test_demo_runs_again_and_ends_with_the_table_and_the_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sdk, "recipe", lambda *_, **__: MobileNetKD.preset("tiny", **SHORT))
    arguments = ["demo", "--output", str(tmp_path / "demo")]
    assert main(arguments) == 0
    captured = capfd.readouterr()
    for text in ("top1", "kept", "teacher", "few labels", "MODEL_CARD.md", "profile.html"):
        assert text in captured.out
    steps = [line for line in captured.err.splitlines() if not line.startswith("...")]
    assert [step[:3] for step in steps] == ["1/3", "2/3", "3/3"]

    assert main([*arguments, "--json"]) == 0
    _check(json.loads(capfd.readouterr().out), engines=[ENGINE])


@pytest.mark.slow
def test_demo_with_every_engine(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--output", str(tmp_path / "demo"), "--json"]) == 0
    found = json.loads(capfd.readouterr().out)
    usable = [name for name, engine in sdk.engines().items() if engine.compile and engine.run]
    _check(found, engines=usable)
    students = found["report"]["students"]
    assert students["ssld"]["mean"] > 0.9


@pytest.mark.slow
def test_the_models_of_code_are_compiled_and_generate(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    arguments = ["demo", "--code", "--output", str(tmp_path / "demo")]
    assert main([*arguments, "--json"]) == 0
    found = json.loads(capfd.readouterr().out)
    assert found["text"].strip()
    speculation = found["report"]["speculation"]
    assert all(row["same"] for row in speculation)
    best = max(row["tokens_per_pass"] for row in speculation if row["draft"] == "draft, distilled")
    assert best > 1.3
    assert sdk.verify(found["artifact"]).ok
    assert main(arguments) == 0
    captured = capfd.readouterr()
    for text in ("import os", "tokens per second", "draft, distilled", "MODEL_CARD.md"):
        assert text in captured.out
    steps = [line for line in captured.err.splitlines() if not line.startswith("...")]
    assert [step[:3] for step in steps] == ["1/2", "2/2"]


def _check(found: dict[str, Any], *, engines: list[str]) -> None:
    builds = [(row["engine"], row["precision"]) for row in found["candidates"]]
    assert builds == [(name, precision) for name in engines for precision in ("fp32", "int8")]
    for row in found["candidates"]:
        assert 0 <= row["metric"] <= 1
        assert row["speed_against_eager"] > 0
        assert row["reason"]
    assert sum(row["kept"] for row in found["candidates"]) == len(engines)
    assert Path(found["profile"]).read_text().startswith("<!doctype html>")
    assert sdk.verify(found["artifact"]).ok
