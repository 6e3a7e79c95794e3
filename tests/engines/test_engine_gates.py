"""The gates of compile: calibration, fidelity, the caller's metric, speed, and their waivers.

On the reference engine, which lowers in no time; the gates are the same for all engines.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from searches import Fragile
from torch import Tensor, nn

import sdk
from sdk import pipeline

TARGET = "torch:cpu:int8"


class Net(nn.Module):
    """A convolution, an activation, a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.mix = nn.Conv2d(8, 8, 1)
        self.head = nn.Linear(8, 5)
        for layer in (self.conv, self.mix, self.head):
            nn.init.kaiming_normal_(layer.weight)  # else biases outweigh what the input does
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mix(F.relu(self.conv(x)))
        return self.head(F.relu(x).mean((2, 3)))


def images(scale: float = 1.0, count: int = 6, size: int = 8) -> list[Tensor]:
    generator = torch.Generator().manual_seed(count)
    return [scale * torch.randn(2, 3, size, size, generator=generator) for _ in range(count)]


@pytest.fixture
def build(tmp_path: Path) -> Callable[..., sdk.Artifact]:
    """Compile Net for int8; whatever fails must leave nothing behind."""
    torch.manual_seed(1)
    model = Net()

    def call(**options: Any) -> sdk.Artifact:
        settings = {"inputs": images()[0], "target": TARGET, "threads": 1, **options}
        try:
            return sdk.compile(settings.pop("model", model), output=tmp_path / "m.edge", **settings)
        except sdk.EdgeError:
            assert list(tmp_path.iterdir()) == []
            raise

    return call


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Make the builds' medians what the test says, in microseconds."""

    def set_to(**medians: float) -> None:
        def sample(calls: dict[str, Any], **_: Any) -> dict[str, list[float]]:
            return {name: [medians[name[-4:]]] * 5 for name in calls}

        monkeypatch.setattr(pipeline, "sample", sample)

    return set_to


@pytest.fixture(autouse=True)
def fast_int8(clock: Callable[..., None]) -> None:
    clock(int8=50.0, fp32=100.0, ager=200.0)


@pytest.mark.parametrize("scale", [0.01, 0.1, 255.0])
def test_calibration_at_another_scale_is_refused(
    scale: float, build: Callable[..., sdk.Artifact]
) -> None:
    with pytest.raises(sdk.ParityError, match="too far from fp32") as caught:
        build(calibration=images(scale))
    assert "calibration" in str(caught.value)
    assert "First diverging operator" in str(caught.value)


def test_calibration_of_another_normalisation_is_refused(
    build: Callable[..., sdk.Artifact],
) -> None:
    pictures = [127.5 * (batch.clamp(-1, 1) + 1) for batch in images()]
    with pytest.raises(sdk.ParityError, match="too far from fp32"):
        build(calibration=pictures, inputs=images()[0].clamp(-1, 1))


@pytest.mark.parametrize(
    ("calibration", "words"),
    [
        ([], "int8 needs calibration data"),
        (images(size=9), "'x' has the wrong shape"),
        ([batch.double() for batch in images()], "'x' has the wrong dtype"),
        ([images()[0].numpy().astype(np.uint8)], "'x' has the wrong dtype"),
        ([torch.full((2, 3, 8, 8), float("nan"))], "NaN or infinity in 'x'"),
        ([torch.full((2, 3, 8, 8), float("inf"))], "NaN or infinity in 'x'"),
        ([(images()[0], images()[0])], "does not have the model's inputs"),
        ([{"y": images()[0]}], "'x' is missing"),
        (["picture.png"], "'x' has the wrong"),
    ],
    ids=["empty", "shape", "float64", "uint8", "nan", "inf", "two", "name", "text"],
)
def test_unusable_calibration_is_refused(
    calibration: list[Any], words: str, build: Callable[..., sdk.Artifact]
) -> None:
    with pytest.raises(sdk.QuantizationError, match=words):
        build(calibration=calibration)


def test_right_calibration_is_kept(build: Callable[..., sdk.Artifact]) -> None:
    manifest = build(calibration=images()).manifest
    assert manifest.target == manifest.requested == TARGET
    assert manifest.kept.reason.startswith("int8 is faster: 50 us against 100 us")
    assert manifest.kept.speedup == 2.0
    assert manifest.kept.fidelity is not None
    assert all(output.ok for output in manifest.kept.fidelity.outputs)


def test_slower_int8_is_rejected_with_the_reason(
    build: Callable[..., sdk.Artifact], clock: Callable[..., None]
) -> None:
    clock(int8=150.0, fp32=100.0, ager=200.0)
    manifest = build(calibration=images()).manifest
    assert manifest.requested == TARGET
    assert manifest.target == "torch:cpu:fp32"
    (rejected,) = [candidate for candidate in manifest.candidates if not candidate.kept]
    assert rejected.target == TARGET
    assert rejected.reason.startswith("int8 is slower than fp32: 150 us against 100 us")


def test_slower_int8_is_kept_where_that_is_waived(
    build: Callable[..., sdk.Artifact], clock: Callable[..., None]
) -> None:
    clock(int8=150.0, fp32=100.0, ager=200.0)
    manifest = build(calibration=images(), waive=["slower"]).manifest
    assert manifest.target == TARGET
    assert manifest.waivers == ("slower",)
    assert manifest.kept.reason.startswith("slower, waived: 150 us against 100 us")


def test_fidelity_waiver_is_recorded(build: Callable[..., sdk.Artifact]) -> None:
    artifact = build(calibration=images(0.01), waive=["fidelity"])
    manifest = sdk.Artifact.open(artifact.path).manifest
    assert manifest.waivers == ("fidelity",)
    assert manifest.kept.fidelity is not None
    assert not all(output.ok for output in manifest.kept.fidelity.outputs)


def test_unknown_waiver_is_refused(build: Callable[..., sdk.Artifact]) -> None:
    with pytest.raises(sdk.InputError, match="waiver 'speed' is not known"):
        build(calibration=images(), waive=["speed"])


def test_metric_needs_a_bound(build: Callable[..., sdk.Artifact]) -> None:
    with pytest.raises(sdk.InputError, match="metric and max_drop go together"):
        build(calibration=images(), metric=lambda predict: 1.0)


def closeness(model: nn.Module, feeds: list[Tensor]) -> Callable[[Any], float]:
    """1 minus the relative error against PyTorch."""
    with torch.no_grad():
        wants = [model(feed).numpy() for feed in feeds]

    def agreement(predict: Callable[[Any], Any]) -> float:
        errors = [
            np.abs(predict(feed.numpy()) - want).max() / np.abs(want).max()
            for feed, want in zip(feeds, wants, strict=True)
        ]
        return 1.0 - float(max(errors))

    return agreement


def test_metric_decides(build: Callable[..., sdk.Artifact]) -> None:
    """Both the figures and the bound are written down; a bound that cannot be met is refused."""
    torch.manual_seed(1)
    metric = closeness(Net().eval(), images(count=3))
    fidelity = build(calibration=images(), metric=metric, max_drop=0.2).manifest.kept.fidelity
    assert fidelity is not None
    assert fidelity.metric == "agreement"
    assert fidelity.reference == pytest.approx(1.0, abs=1e-5)
    assert fidelity.measured is not None
    assert 0.8 < fidelity.measured < 1.0
    assert fidelity.max_drop == 0.2


def test_metric_that_cannot_be_met_is_refused(build: Callable[..., sdk.Artifact]) -> None:
    torch.manual_seed(1)
    metric = closeness(Net().eval(), images(count=3))
    with pytest.raises(sdk.ParityError, match="loses too much: agreement") as caught:
        build(calibration=images(), metric=metric, max_drop=0.0)
    assert "allowed drop 0.0" in str(caught.value)


def test_layer_that_costs_the_metric_goes_back_to_float(
    build: Callable[..., sdk.Artifact],
) -> None:
    torch.manual_seed(2)
    model = Fragile().eval()
    feeds = [torch.randn(16, 8) for _ in range(8)]
    options = {"model": model, "inputs": feeds[0], "calibration": feeds}
    metric = closeness(model, feeds)
    kept = build(metric=metric, max_drop=0.05, **options).manifest.kept
    assert kept.target == TARGET
    assert kept.float_layers == ("wide",)
    assert kept.fidelity is not None
    assert kept.fidelity.measured is not None
    assert kept.fidelity.measured > 0.95


def test_kept_layer_stays_in_float(build: Callable[..., sdk.Artifact], tmp_path: Path) -> None:
    artifact = build(calibration=images(), keep_float=["mix"])
    assert artifact.manifest.kept.float_layers == ("mix",)
    text = (artifact.path / "program.json").read_text()
    assert '"mix.weight"' in text
    assert '"conv.weight"' not in text


def test_unknown_layer_is_refused(build: Callable[..., sdk.Artifact]) -> None:
    with pytest.raises(sdk.InputError, match="unknown layer 'mixer'") as caught:
        build(calibration=images(), keep_float=["mixer"])
    assert "mix" in str(caught.value.expected)


@pytest.mark.parametrize(
    ("target", "error", "words"),
    [
        ("onnxruntime:cpu:bf16", sdk.EngineUnavailableError, "does not run bf16"),
        ("torch:npu:fp32", sdk.EngineUnavailableError, "has no device 'npu'"),
        ("openvino:cpu:fp8", sdk.EngineUnavailableError, "does not run fp8"),
        ("openvine", sdk.InputError, "did you mean 'openvino'"),
        ("openvino:cpu:int9", sdk.InputError, "did you mean 'int8'"),
        ("openvino::int8", sdk.InputError, "does not parse"),
    ],
)
def test_unusable_target_is_refused(
    target: str, error: type[sdk.EdgeError], words: str, build: Callable[..., sdk.Artifact]
) -> None:
    with pytest.raises(error, match=words):
        build(calibration=images(), target=target)
