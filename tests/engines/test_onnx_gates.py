"""Gates with a hard sigmoid become the numbers of a quantization grid; other hard sigmoids stay."""

from __future__ import annotations

import functools
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as nnf

from sdk.compilers import lower
from sdk.compilers.capture import capture
from sdk.compilers.onnx_file import write_onnx
from sdk.compilers.program import Program
from sdk.compilers.quantize import quantize
from sdk.runtimes import open_session
from sdk.target import Target

ENGINES = ("onnxruntime", "openvino")
FEED = {
    "x": np.random.default_rng(0).normal(0, 1, (64, 8, 6, 6)).astype(np.float32),
    "one": np.ones((64, 1, 1, 1), np.float32),
}

# what the gate sees is stretched by this: it stays between its clips, or is clipped on both ends
REACHES = {"narrow": 0.5, "clipped": 100.0}


class Gated(nn.Module):
    """A squeeze-and-excitation block behind a hard swish; its gate sees `reach` times as much."""

    def __init__(self, reach: float) -> None:
        super().__init__()
        self.first = nn.Conv2d(8, 16, 1)
        self.squeeze = nn.Conv2d(16, 8, 1)
        self.excite = nn.Conv2d(8, 16, 1)
        with torch.no_grad():
            self.excite.weight *= reach

    def forward(self, x: Tensor, one: Tensor) -> tuple[Tensor, Tensor]:
        """The gated features, and what the gate makes of ones."""
        x = nnf.hardswish(self.first(x))
        gate = self.excite(torch.relu(self.squeeze(x.mean((2, 3), keepdim=True))))
        gate = nnf.hardsigmoid(gate)
        return x * gate, one * gate


@functools.cache
def quantized(reach: float) -> Program:
    torch.manual_seed(0)
    return quantize(capture(Gated(reach).eval(), FEED), [FEED])


def rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(values**2)))


def kinds(file: Path) -> Counter[str]:
    return Counter(node.op_type for node in onnx.load(file).graph.node)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("reach", REACHES.values(), ids=REACHES)
def test_gates_are_folded_and_keep_their_values(engine: str, reach: float, tmp_path: Path) -> None:
    program = quantized(reach)
    target = Target(engine, precision="int8")
    file = lower(program, target, tmp_path / "build").file
    assert kinds(file)["HardSigmoid"] == 0
    session = open_session(file, program.signature, target, threads=1)
    assert program.base is not None
    got, exact = session.run(FEED), program.base.reference(FEED)
    pairs = program.reference(FEED)
    for name, values in exact.items():
        assert rms(got[name] - values) < 1.05 * rms(pairs[name] - values)
    assert abs((got["output_1"] - pairs["output_1"]).mean()) < 0.2 / 255  # a whole step is 1 / 255


def test_engines_with_one_grid_per_tensor_keep_the_gate(tmp_path: Path) -> None:
    write_onnx(quantized(REACHES["narrow"]), tmp_path / "model.onnx")
    assert kinds(tmp_path / "model.onnx")["HardSigmoid"] == 1


class Swish(nn.Module):
    """A hard swish between two convolutions, the second of which hands on each channel."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(8, 8, 1)
        self.second = nn.Conv2d(8, 8, 1, bias=False)
        with torch.no_grad():
            self.first.weight *= 5  # past both clips
            self.second.weight.copy_(torch.eye(8).reshape(8, 8, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Convolve, swish, and hand on."""
        return self.second(nnf.hardswish(self.first(x)))


def test_onnx_runtime_swishes_in_integers(tmp_path: Path) -> None:
    torch.manual_seed(0)
    feed = {"x": FEED["x"]}
    program = quantize(capture(Swish().eval(), feed), [feed])
    target = Target("onnxruntime", precision="int8")
    file = lower(program, target, tmp_path / "build").file
    session = open_session(file, program.signature, target, threads=1)
    kernels = {row.kernel for row in session.placement()}
    assert {"QLinearLeakyRelu", "QLinearMul"} <= kernels
    assert not {"HardSwish", "HardSigmoid", "Mul"} & kernels
    got, want = session.run(feed)["output"], program.reference(feed)["output"]
    step = np.ptp(want) / 255
    assert rms(got - want) < 0.5 * step
    assert abs((got - want).mean()) < 0.05 * step
    high = want > 4
    assert rms(got[high] - want[high]) < 0.5 * step
    assert abs((got[high] - want[high]).mean()) < 0.05 * step
