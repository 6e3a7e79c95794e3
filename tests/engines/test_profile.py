"""The profiler on each engine: the parts add up, the operators are traced, the trace nests."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from engines import Engine, row
from torch import Tensor, nn

import sdk
from sdk.profiling import Profile

ROWS = [
    row("onnxruntime:cpu:fp32"),
    row("onnxruntime:cpu:int8"),
    row("openvino:cpu:fp32"),
    row("openvino:cpu:int8"),
    row("torch:cpu:fp32"),
]
TRIES = 4  # a busy machine may interrupt the Python between the clocks


class SqueezeExcite(nn.Module):
    """Scales channels by what their means say."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc1 = nn.Conv2d(channels, channels // 4, 1)
        self.fc2 = nn.Conv2d(channels // 4, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.nn.functional.hardsigmoid(self.fc2(torch.relu(self.fc1(self.pool(x)))))


class Block(nn.Module):
    """Inverted residual with squeeze and excite, as in MobileNetV3."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.expand = _unit(channels, hidden, 1)
        self.depthwise = _unit(hidden, hidden, 3, groups=hidden)
        self.excite = SqueezeExcite(hidden)
        self.project = nn.Sequential(nn.Conv2d(hidden, channels, 1), nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.project(self.excite(self.depthwise(self.expand(x))))


class Net(nn.Module):
    """One block with a stem and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = _unit(3, 32, 3)
        self.block = Block(32, 64)
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block(self.stem(x)).mean((2, 3)))


def _unit(inputs: int, outputs: int, kernel: int, groups: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, kernel, 1, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.Hardswish())


@pytest.fixture(scope="module", params=ROWS, ids=str)
def model(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[sdk.Model]:
    engine: Engine = request.param
    engine.require()
    torch.manual_seed(0)
    artifact = sdk.compile(
        Net().eval(),
        inputs=torch.randn(1, 3, 48, 48),
        target=engine.target,
        calibration=[torch.randn(2, 3, 48, 48) for _ in range(4)],
        dynamic={"x": {0: sdk.Dim("batch", 1, 1, 4)}},
        waive=("slower", "fidelity"),
        output=tmp_path_factory.mktemp("profile") / "net.edge",
        threads=1,
    )
    with sdk.load(artifact, threads=1) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def profile(model: sdk.Model) -> Profile:
    """The first of a few that adds up, or the last."""
    for _ in range(TRIES):
        made = sdk.profile(model, runs=40)
        if made.accounting.adds_up:
            break
    return made


def test_parts_add_up_to_the_wall_time(profile: Profile) -> None:
    books = profile.accounting
    assert books.adds_up, books
    assert abs(books.wall - books.operators - books.engine - books.binding - books.framework) <= (
        0.05 * books.wall
    )
    assert min(books.operators, books.binding, books.framework) > 0
    assert books.framework < 0.2 * books.wall


def test_most_of_the_time_is_traced_to_the_right_modules(profile: Profile) -> None:
    assert profile.mapped >= 0.9
    named = sum(row.share for row in profile.operators if row.origin.how == "name")
    assert named >= 0.5, "most of it by name, not by place"
    found = {module for row in profile.operators for module in row.origin.modules}
    units = {"stem.0", "block.expand.0", "block.depthwise.0", "block.project.0", "head"}
    assert units | {"block.excite.fc1", "block.excite.fc2"} <= found
    convolutions = [row for row in profile.operators if "conv" in row.kind.lower()]
    assert convolutions
    for convolution in convolutions:
        if convolution.origin.how == "name" and "Convert" not in convolution.kind:
            assert "conv2d" in convolution.origin.operators[0], convolution


def test_events_nest_in_the_call(profile: Profile, tmp_path: Path) -> None:
    profile.save_trace(tmp_path / "trace.json")
    trace = json.loads((tmp_path / "trace.json").read_text())
    events = [event for event in trace["traceEvents"] if event["ph"] == "X"]
    (call,) = [event for event in events if event["name"] == "predict"]
    assert len(events) == 3 + len(profile.operators)
    for event in events:
        assert call["ts"] <= event["ts"]
        assert event["ts"] + event["dur"] <= call["ts"] + call["dur"] + 2, event


def test_figures_are_those_of_this_artifact(profile: Profile, model: sdk.Model) -> None:
    assert profile.target == model.artifact.manifest.target
    assert profile.bytes == model.artifact.size
    assert profile.threads == 1
    assert [entry.batch for entry in profile.throughput] == [1, 4]
    assert profile.latency.runs == len(profile.walls) == 40
    cold = profile.footprint
    assert cold.load_ms > 0
    assert cold.first_call > 0
    assert cold.resident_start < cold.resident_engine < cold.resident_peak
    assert len(profile.placement) == len(model.placement())


def test_the_report_is_whole_and_needs_no_network(profile: Profile, tmp_path: Path) -> None:
    profile.save(tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert text.rstrip().endswith("</html>")
    assert "http:" not in text
    assert "https:" not in text
    assert profile.operators[0].name in text
