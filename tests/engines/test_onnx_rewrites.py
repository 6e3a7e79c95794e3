"""Rewrites of the ONNX graph keep its values and leave the operators that engines run fast."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from engines import row
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


class Padded(nn.Module):
    """Convolutions behind pads as TensorFlow makes them, one that stays and one with a value."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, 2)
        self.second = nn.Conv2d(4, 4, 3, padding=1)
        self.third = nn.Conv2d(4, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Pads before each of them."""
        x = torch.relu(self.first(nnf.pad(x, (0, 1, 0, 1))))
        x = torch.relu(self.second(nnf.pad(x, (1, 0, 2, 1))))
        return self.third(nnf.pad(x, (1, 1, 1, 1), value=1.0))


@pytest.fixture(scope="module")
def example() -> np.ndarray:
    return np.random.default_rng(0).normal(0.3, 1, (2, 3, 12, 12)).astype(np.float32)


@pytest.fixture(scope="module", params=["fp32", "int8"])
def program(request: pytest.FixtureRequest, example: np.ndarray) -> Program:
    torch.manual_seed(0)
    captured = capture(Padded().eval(), {"x": example})
    return quantize(captured, [{"x": example}]) if request.param == "int8" else captured


def kinds(file: Path) -> Counter[str]:
    return Counter(node.op_type for node in onnx.load(file).graph.node)


def test_pads_go_into_convolutions_and_pairs_of_one_grid_go(
    program: Program, tmp_path: Path
) -> None:
    write_onnx(program, tmp_path / "model.onnx")
    found = kinds(tmp_path / "model.onnx")
    assert found["Pad"] == 1  # the one whose value is not zero
    pads = [
        list(attribute.ints)
        for node in onnx.load(tmp_path / "model.onnx").graph.node
        for attribute in node.attribute
        if attribute.name == "pads" and node.op_type == "Conv"
    ]
    assert [0, 0, 1, 1] in pads
    assert [3, 2, 2, 1] in pads
    if program.precision == "int8":
        # the input, behind each convolution but the last, and around the pad that stays
        assert found["QuantizeLinear"] <= 4


@pytest.mark.parametrize("engine", ENGINES)
def test_values_stay(program: Program, example: np.ndarray, tmp_path: Path, engine: str) -> None:
    write_onnx(program, tmp_path / "model.onnx")
    target = Target(engine, precision=program.precision)
    session = open_session(tmp_path / "model.onnx", program.signature, target, threads=1)
    got, want = session.run({"x": example}), program.reference({"x": example})
    tolerance = 1e-5 if program.precision == "fp32" else 0.05
    for name, values in want.items():
        np.testing.assert_allclose(got[name], values, atol=tolerance * np.abs(values).max())


class Depthwise(nn.Module):
    """A depthwise layer between two others, with weights of very unlike channels."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 1)
        self.middle = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.last = nn.Conv2d(8, 4, 1)
        with torch.no_grad():
            self.middle.weight *= torch.logspace(-3, 0, 8).reshape(-1, 1, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """1 x 1, depthwise, 1 x 1."""
        return self.last(nnf.relu6(self.middle(nnf.relu6(self.first(x)))))


@pytest.mark.parametrize("engine", ENGINES)
def test_a_layer_left_in_float_is_not_quantized_by_the_engine(
    example: np.ndarray, tmp_path: Path, engine: str
) -> None:
    torch.manual_seed(1)
    captured = capture(Depthwise().eval(), {"x": example})
    program = quantize(captured, [{"x": example}], keep_float=["middle"])
    write_onnx(program, tmp_path / "model.onnx")
    target = Target(engine, precision="int8")
    session = open_session(tmp_path / "model.onnx", program.signature, target, threads=1)
    got, want = session.run({"x": example})["output"], program.reference({"x": example})["output"]
    assert np.sqrt(np.mean((got - want) ** 2)) < 0.01 * want.std()


def test_biases_of_int8_layers_are_int32_and_others_stay(
    example: np.ndarray, tmp_path: Path
) -> None:
    captured = capture(Depthwise().eval(), {"x": example})
    program = quantize(captured, [{"x": example}], keep_float=["middle"])
    write_onnx(program, tmp_path / "model.onnx")
    graph = onnx.load(tmp_path / "model.onnx").graph
    stored = {tensor.name: tensor for tensor in graph.initializer}
    made = {name: node for node in graph.node for name in node.output}
    float_bias = []
    for conv in (node for node in graph.node if node.op_type == "Conv"):
        if conv.input[2] in stored:
            float_bias.append(conv.input[1])
        else:
            whole = stored[made[conv.input[2]].input[0]]
            assert whole.data_type == onnx.TensorProto.INT32
    assert float_bias == ["middle.weight"]


class Classifier(nn.Module):
    """A 1 x 1 convolution behind a global pool, as the last layer: flat, or in its own shape."""

    def __init__(self, *, flat: bool, stride: int = 1) -> None:
        super().__init__()
        self.features = nn.Conv2d(3, 8, 3)
        self.pool = nn.AdaptiveAvgPool2d(stride)
        self.classes = nn.Conv2d(8, 5, 1, stride)
        self.flat = flat

    def forward(self, x: Tensor) -> Tensor:
        """Pool and classify."""
        scores: Tensor = self.classes(self.pool(torch.relu(self.features(x))))
        return scores.flatten(1) if self.flat else scores


@pytest.mark.parametrize("flat", [True, False])
def test_onnx_runtime_runs_a_classifier_of_one_pixel_as_an_integer_matrix_product(
    flat: bool, example: np.ndarray, tmp_path: Path
) -> None:
    torch.manual_seed(2)
    captured = capture(Classifier(flat=flat).eval(), {"x": example})
    program = quantize(captured, [{"x": example}])
    target = Target("onnxruntime", precision="int8")
    file = lower(program, target, tmp_path / "build").file
    session = open_session(file, program.signature, target, threads=1)
    got, want = session.run({"x": example})["output"], program.reference({"x": example})["output"]
    np.testing.assert_allclose(got, want, atol=0.01 * np.abs(want).max())
    kernels = [row.kernel for row in session.placement()]
    assert "QGemm" in kernels
    assert not {"Conv", "DequantizeLinear"} & {*kernels}


def test_a_classifier_that_skips_pixels_stays_a_convolution(
    example: np.ndarray, tmp_path: Path
) -> None:
    captured = capture(Classifier(flat=True, stride=2).eval(), {"x": example})
    program = quantize(captured, [{"x": example}])
    target = Target("onnxruntime", precision="int8")
    assert kinds(lower(program, target, tmp_path / "build").file)["Conv"] == 2


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_a_window_larger_than_the_picture_is_a_mean_of_all(tmp_path: Path, engine: str) -> None:
    """OpenVINO and TensorRT refuse the window as it is."""
    model = nn.Sequential(nn.AvgPool2d(8, ceil_mode=True), nn.Flatten()).eval()
    picture = torch.randn(2, 4, 3, 5)
    target = Target.parse(f"{engine}:cpu:fp32")
    row(str(target)).require()
    build = lower(capture(model, picture), target, tmp_path / "built")
    session = open_session(build.file, capture(model, picture).signature, target, threads=1)
    (got,) = session.run({"input": picture.numpy()}).values()
    np.testing.assert_allclose(got, picture.mean((2, 3)), rtol=1e-5, atol=1e-6)
