"""What a search keeps, what it says of the rest, and within which budgets."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from searches import FAST_INT8, FEEDS, MODEL, PRECISIONS, Tune, by_precision

import sdk
from sdk.search import run
from sdk.search.layers import layer_times


def test_the_sensitive_layer_goes_to_float(tune: Tune) -> None:
    found = tune()
    manifest = sdk.Artifact.open(found.artifact.path).manifest
    assert (manifest.requested, manifest.target) == ("torch:cpu:auto", "torch:cpu:int8")
    assert manifest.kept.float_layers == ("wide",)
    assert manifest.kept.reason.startswith("the fastest of")
    assert manifest.kept.fidelity is not None
    assert manifest.kept.fidelity.measured is not None
    assert manifest.kept.fidelity.measured > 0.95
    assert [(row.name, row.precision) for row in found.layers] == [
        ("wide", "fp32"),
        ("last", "int8"),
        ("first", "int8"),
    ]
    assert found.layers[0].cost > 10 * found.layers[1].cost


def test_every_candidate_is_there_with_its_reason(tune: Tune) -> None:
    rows = by_precision(tune())
    assert tuple(rows) == PRECISIONS
    assert all(candidate.reason for found in rows.values() for candidate in found)
    whole, mixed = rows["int8"]
    assert "loses too much: closeness" in whole.reason
    assert whole.latency is None
    assert mixed.kept
    assert "fp32 is slower than int8 with 1 layer in float: 100 us" in rows["fp32"][0].reason
    assert "8 inputs, which groups of 32 do not divide" in rows["int4"][0].reason
    assert sum(candidate.kept for found in rows.values() for candidate in found) == 1


def test_latencies_are_measured_anew(tune: Tune, clock: Callable[..., None]) -> None:
    clock(fp32=10.0)
    assert tune().artifact.manifest.target == "torch:cpu:fp32"


def test_a_network_that_is_slower_in_int8_stays_in_float(
    tune: Tune, clock: Callable[..., None]
) -> None:
    clock(**{**FAST_INT8, "int8": 150.0})
    found = tune()
    assert found.artifact.manifest.target == "torch:cpu:fp32"
    mixed = by_precision(found)["int8"][1]
    assert "int8 with 1 layer in float is slower than fp32: 150 us against 100 us" in mixed.reason
    assert {layer.precision for layer in found.layers} == {"fp32"}


def test_layers_that_are_slower_quantized_go_to_float(
    tune: Tune, monkeypatch: pytest.MonkeyPatch
) -> None:
    def times(built: Any, _feed: Any) -> dict[str, float]:
        lost = 4.0 if built.target.precision == "int8" else 0.0
        return {"first": 10.0, "wide": 10.0 + lost, "last": 10.0 + lost}

    monkeypatch.setattr(run, "layer_times", times)
    found = tune()
    mixtures = [candidate.float_layers for candidate in by_precision(found)["int8"]]
    assert mixtures == [(), ("wide",), ("last", "wide")]
    (row,) = [layer for layer in found.layers if layer.name == "last"]
    assert (row.float_us, row.quantized_us) == (10.0, 14.0)


def test_without_a_metric_the_outputs_decide(tune: Tune) -> None:
    found = tune(metric=None, max_drop=None)
    whole, mixed = by_precision(found)["int8"]
    assert "too far from fp32" in whole.reason
    assert mixed.float_layers == ("wide",)
    assert found.metric is None


def test_no_calibration_leaves_static_precisions_out(tune: Tune) -> None:
    found = tune(calibration=())
    (row,) = by_precision(found)["int8"]
    assert row.reason.startswith("int8 needs calibration data.")
    assert not row.kept
    assert found.layers == ()


def test_the_engines_profiler_tells_the_times_of_layers(tmp_path: Path) -> None:
    from sdk.compilers import lower
    from sdk.compilers.capture import capture
    from sdk.runtimes import open_session

    target = sdk.Target("torch")
    program = capture(MODEL, FEEDS[0], None)
    build = lower(program, target, tmp_path / "build")
    session = open_session(build.file, program.signature, target, threads=1)
    built: Any = SimpleNamespace(session=session, build=build)
    times = layer_times(built, {"x": FEEDS[0].numpy()})
    assert set(times) >= {"first", "wide", "last"}
    assert all(0 < times[name] < 1e5 for name in ("first", "wide", "last"))


def test_a_metric_that_raises_is_the_callers(tune: Tune) -> None:
    with pytest.raises(ZeroDivisionError):
        tune(metric=lambda _predict: 1 / 0)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), None, "good", np.ones(2)])
def test_a_metric_that_is_no_number_is_refused(value: Any, tune: Tune) -> None:
    with pytest.raises(sdk.InputError, match="not a finite number for torch:cpu:fp32"):
        tune(metric=lambda _predict: value)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"max_drop": -0.1}, "max_drop is not usable"),
        ({"max_drop": float("nan")}, "max_drop is not usable"),
        ({"max_latency_us": -1.0}, "max_latency_us is not usable"),
        ({"max_latency_us": float("nan")}, "max_latency_us is not usable"),
        ({"max_bytes": 0}, "max_bytes is not usable"),
        ({"target": "torch:cpu:int8"}, "tries all precisions, not int8 alone"),
        ({"cache": __file__}, "is not usable"),
    ],
)
def test_unusable_budgets_targets_and_caches(
    options: dict[str, Any], words: str, tune: Tune
) -> None:
    with pytest.raises(sdk.InputError, match=words):
        tune(**options)


def test_budgets_belong_to_the_search(tmp_path: Path) -> None:
    with pytest.raises(sdk.InputError, match="budget of the search") as caught:
        sdk.compile(
            MODEL, inputs=FEEDS[0], target="torch:cpu:fp16", output=tmp_path / "m.edge", max_bytes=9
        )
    assert "torch:cpu:auto" in str(caught.value)


def test_budgets_that_nothing_meets(tune: Tune) -> None:
    with pytest.raises(sdk.BudgetError, match="within the budgets") as caught:
        tune(max_latency_us=20.0)
    assert "torch:cpu:int8: 50 us against 20 us allowed" in str(caught.value)


def test_nothing_that_passes_is_a_parity_error(tune: Tune, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run.Tuner, "finalists", [])
    with pytest.raises(sdk.ParityError, match="No precision of torch:cpu:auto") as caught:
        tune()
    assert "loses too much" in str(caught.value)


def test_reports(tune: Tune, tmp_path: Path) -> None:
    found = tune()
    found.save(tmp_path / "tune.html")
    found.save(tmp_path / "tune.json")
    text = (tmp_path / "tune.html").read_text()
    assert "http://" not in text.replace("http://www.w3.org", "")
    assert "https://" not in text
    for words in ("<svg", "wide", "loses too much: closeness", "Sensitivity of the layers"):
        assert words in text
    data = json.loads((tmp_path / "tune.json").read_text())
    assert [row["on_front"] for row in data["candidates"]].count(True) == len(found.front)
    assert data["layers"][0]["name"] == "wide"
    with pytest.raises(sdk.InputError, match="cannot be written"):
        found.save(tmp_path / "tune.pdf")
