"""Planted faults: compile must fail, and name the operator or output that is wrong."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cases import mobile_block
from engines import row
from torch import Tensor, nn

import sdk
from sdk.localize import engine_divergence, quantization_divergence
from sdk.parity import FIDELITY
from sdk.target import Target

onnx = pytest.importorskip("onnx")
ENGINES = ("onnxruntime", "openvino")
Edit = Callable[[Any], None]


class Net(nn.Module):
    """Two convolutions, two branches that meet, a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.left = nn.Conv2d(8, 8, 1)
        self.right = nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, 5)
        for layer in (self.stem, self.left, self.right, self.head):
            nn.init.kaiming_normal_(layer.weight)  # else biases outweigh what the input does
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = F.hardswish(self.stem(x))
        left = self.left(x)
        right = F.elu(self.right(x))
        return self.head((left + right).mean((2, 3)))


class Pair(nn.Module):
    """Two outputs of one shape."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        y = self.layer(x)
        return {"mean": torch.tanh(y), "scale": torch.exp(y)}


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> str:
    row(f"{request.param}:cpu:fp32").require()
    return str(request.param)


@pytest.fixture
def plant(monkeypatch: pytest.MonkeyPatch) -> Callable[[Edit], None]:
    """Change every ONNX file that is written, as a wrong translation would."""
    from sdk.compilers import onnx_file, onnxruntime, openvino

    def planted(edit: Edit) -> None:
        def write(program: Any, file: Path) -> Any:
            sources = onnx_file.write_onnx(program, file)
            model = onnx.load(file)
            edit(model.graph)
            onnx.save(model, file)
            return sources

        for module in (onnxruntime, openvino):
            monkeypatch.setattr(module, "write_onnx", write)

    return planted


def images(count: int = 4) -> list[Tensor]:
    return [torch.randn(2, 3, 8, 8) for _ in range(count)]


def compile_error(model: nn.Module, target: str, folder: Path, **options: Any) -> sdk.ParityError:
    """Compile, which must fail on parity and leave nothing behind."""
    options = {"inputs": images(1)[0], **options}
    with pytest.raises(sdk.ParityError) as caught:
        sdk.compile(model, target=target, output=folder / "m.edge", threads=1, **options)
    assert list(folder.iterdir()) == []
    return caught.value


def line_of(text: str) -> str:
    """`file:line: code` of the line of this file that has `text`."""
    lines = Path(__file__).read_text().splitlines()
    number = next(i for i, line in enumerate(lines, 1) if text in line)
    return f"{Path(__file__).name}:{number}: {lines[number - 1].strip()}"


def replace_operator(old: str, new: str, **attributes: float) -> Edit:
    def edit(graph: Any) -> None:
        for node in graph.node:
            if node.op_type == old:
                node.op_type = new
                del node.attribute[:]
                node.attribute.extend(onnx.helper.make_attribute(*a) for a in attributes.items())

    return edit


def scale_constant(names: Sequence[str], factor: float) -> Edit:
    """Multiply the initializers with these names."""

    def edit(graph: Any) -> None:
        for tensor in graph.initializer:
            if tensor.name in names:
                array = onnx.numpy_helper.to_array(tensor)
                changed = (array * np.float32(factor)).astype(array.dtype)
                tensor.CopyFrom(onnx.numpy_helper.from_array(changed, tensor.name))

    return edit


def test_wrong_translation_is_named(
    engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from onnxscript import opset20 as op

    from sdk.compilers import onnx_file

    wrong = {torch.ops.aten.hardswish.default: lambda x: op.Sigmoid(x)}
    monkeypatch.setattr(onnx_file, "TRANSLATIONS", wrong)
    message = str(compile_error(Net(), f"{engine}:cpu:fp32", tmp_path))
    assert "First diverging operator: aten.hardswish.default" in message
    assert line_of("x = F.hardswish(self.stem(x))") in message


def test_operator_of_one_branch_is_named(
    engine: str, tmp_path: Path, plant: Callable[[Edit], None]
) -> None:
    plant(replace_operator("Elu", "Relu"))
    message = str(compile_error(Net(), f"{engine}:cpu:fp32", tmp_path))
    assert "First diverging operator: aten.elu.default" in message
    assert line_of("right = F.elu(self.right(x))") in message


def test_first_of_two_faults_is_named(
    engine: str, tmp_path: Path, plant: Callable[[Edit], None]
) -> None:
    def both(graph: Any) -> None:
        replace_operator("Elu", "Relu")(graph)
        replace_operator("HardSwish", "Sigmoid")(graph)

    plant(both)
    message = str(compile_error(Net(), f"{engine}:cpu:fp32", tmp_path))
    assert "First diverging operator: aten.hardswish.default" in message


def test_wrong_weight_is_named(engine: str, tmp_path: Path, plant: Callable[[Edit], None]) -> None:
    plant(scale_constant(["left.weight"], 1.5))
    message = str(compile_error(Net(), f"{engine}:cpu:fp32", tmp_path))
    assert "First diverging operator: aten.conv2d.default in module 'left'" in message
    assert line_of("left = self.left(x)") in message


def test_nan_is_named(engine: str, tmp_path: Path, plant: Callable[[Edit], None]) -> None:
    plant(replace_operator("Elu", "Log"))
    message = str(compile_error(Net(), f"{engine}:cpu:fp32", tmp_path))
    assert "NaN or infinity where the reference has none" in message
    assert "First diverging operator: aten.elu.default" in message


def test_swapped_outputs_are_named(
    engine: str, tmp_path: Path, plant: Callable[[Edit], None]
) -> None:
    def swap(graph: Any) -> None:
        names = {"mean": "scale", "scale": "mean"}
        for node in graph.node:
            node.output[:] = [names.get(name, name) for name in node.output]

    plant(swap)
    error = compile_error(Pair(), f"{engine}:cpu:fp32", tmp_path, inputs=torch.randn(6, 4))
    assert "mean" in str(error)
    assert "carries the values of output 'scale': outputs are swapped" in str(error)
    assert "carries the values of output 'mean': outputs are swapped" in str(error)
    assert "First diverging operator" not in str(error)


@pytest.mark.parametrize(
    ("engine", "side", "factor"),
    [("onnxruntime", "quantize", 4.0), ("openvino", "dequantize", 0.25)],
    indirect=["engine"],
)
def test_mis_scaled_pair_is_named(
    engine: str, side: str, factor: float, tmp_path: Path, plant: Callable[[Edit], None]
) -> None:
    """One side of the pair behind the first convolution has a wrong scale."""

    def edit(graph: Any) -> None:
        for node in graph.node:
            if node.name == f"node_{side}_per_tensor_1":
                old = next(tensor for tensor in graph.initializer if tensor.name == node.input[1])
                node.input[1] = "wrong"
                wrong = onnx.numpy_helper.to_array(old) * np.float32(factor)
                graph.initializer.append(onnx.numpy_helper.from_array(wrong, "wrong"))

    plant(edit)
    message = str(compile_error(Net(), f"{engine}:cpu:int8", tmp_path, calibration=images(8)))
    assert f"{engine}:cpu:int8 does not compute what the model computes" in message
    assert "First diverging operator: quantized_decomposed.dequantize_per_tensor" in message
    assert line_of("x = F.hardswish(self.stem(x))") in message


def test_mis_scaled_weight_is_named(
    engine: str, tmp_path: Path, plant: Callable[[Edit], None]
) -> None:
    def edit(graph: Any) -> None:
        for node in graph.node:
            if node.name == "node_dequantize_per_channel_2":
                scale_constant([node.input[1]], 4.0)(graph)

    plant(edit)
    message = str(compile_error(Net(), f"{engine}:cpu:int8", tmp_path, calibration=images(8)))
    assert "First diverging operator: quantized_decomposed.dequantize_per_channel" in message
    assert line_of("right = F.elu(self.right(x))") in message


def test_pair_that_was_calibrated_wrong_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine agrees with the quantized program, which is itself far from the model."""
    row("torch:cpu:int8").require()
    from sdk.compilers import quantize

    honest = quantize.calibrate

    def narrow(prepared: nn.Module, *rest: Any) -> None:
        honest(prepared, *rest)
        observer = prepared.activation_post_process_3  # behind the operator hardswish
        observer.min_val /= 50
        observer.max_val /= 50
        observer.histogram[:] = 1

    monkeypatch.setattr(quantize, "calibrate", narrow)
    message = str(compile_error(Net(), "torch:cpu:int8", tmp_path, calibration=images(8)))
    assert "torch:cpu:int8 is too far from fp32" in message
    assert "First diverging operator: quantized_decomposed.dequantize_per_tensor" in message


@pytest.mark.parametrize(
    ("engine", "precision"), [("onnxruntime", "int8"), ("openvino", "fp32")], indirect=["engine"]
)
def test_right_build_is_not_blamed(engine: str, precision: str, tmp_path: Path) -> None:
    from sdk.compilers.capture import capture
    from sdk.compilers.quantize import quantize

    example = torch.randn(2, 8, 6, 6)
    program = capture(mobile_block().eval(), example)
    name = program.signature.inputs[0].name
    feeds = [{name: torch.randn(2, 8, 6, 6).numpy()} for _ in range(8)]
    if precision == "int8":
        program = quantize(program, feeds)
        assert quantization_divergence(program, feeds[0], FIDELITY["int8"]) is None
    target = Target(engine, precision=precision)
    found = engine_divergence(program, target, {name: example.numpy()}, tmp_path, threads=1)
    assert found is None
