"""What cannot be captured or lowered: the error says which line, why, and what to change."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from engines import row
from torch import Tensor, nn

import sdk

BATCH = sdk.Dim("batch", 1, 2, 8)


class Module(nn.Module):
    """A linear layer in front of a function of its output."""

    def __init__(self, function: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(self.layer(x))


def branches(x: Tensor) -> Tensor:
    if x.sum() > 0:
        return x
    return -x


def loops(x: Tensor) -> Tensor:
    for _ in range(int(x.abs().max().item())):
        x = x * 0.5
    return x


def selects(x: Tensor) -> Tensor:
    return x[x > 0] if x.max().item() > 0 else x


def asserts(x: Tensor) -> Tensor:
    assert x.min() > -100, "too small"
    return x


def converts(x: Tensor) -> Tensor:
    return torch.from_numpy(np.sin(x.detach().numpy()))


def breaks(x: Tensor) -> Tensor:
    return x @ torch.ones(5, 2)


@pytest.fixture
def refused(tmp_path: Path) -> Callable[..., sdk.EdgeError]:
    """Compile, which must fail with an error of the tree and leave nothing behind."""

    def call(model: Any, kind: type[sdk.EdgeError], **options: Any) -> sdk.EdgeError:
        settings = {"inputs": torch.randn(2, 4), "target": "torch", "threads": 1, **options}
        with pytest.raises(kind) as caught:
            sdk.compile(model, output=tmp_path / "m.edge", **settings)
        assert list(tmp_path.iterdir()) == []
        return caught.value

    return call


@pytest.mark.parametrize(
    ("function", "code"),
    [
        (branches, "if x.sum() > 0:"),
        (loops, "for _ in range(int(x.abs().max().item())):"),
        (selects, "return x[x > 0] if x.max().item() > 0 else x"),
        (breaks, "return x @ torch.ones(5, 2)"),
    ],
)
def test_line_that_cannot_be_captured_is_named(
    function: Callable[[Tensor], Any], code: str, refused: Callable[..., sdk.EdgeError]
) -> None:
    error = refused(Module(function), sdk.CaptureError)
    lines = Path(__file__).read_text().splitlines()
    number = 1 + next(i for i, line in enumerate(lines) if line.strip() == code)
    assert error.fix is not None
    assert f"{Path(__file__).name}:{number}: {code}" in error.fix


@pytest.mark.parametrize(
    ("function", "kinds"),
    [
        (lambda x: {"y": x, "name": "text"}, "str"),
        (lambda x: (x, 3), "int"),
        (lambda x: None, "NoneType"),
        (lambda x: [], ""),
    ],
    ids=["text", "number", "none", "empty"],
)
def test_output_that_is_no_tensor_is_refused(
    function: Callable[[Tensor], Any], kinds: str, refused: Callable[..., sdk.EdgeError]
) -> None:
    error = refused(Module(function), sdk.CaptureError)
    assert "outputs are not all tensors" in str(error)
    assert kinds in str(error.got)


def test_dynamic_size_that_the_model_fixes_is_named(
    refused: Callable[..., sdk.EdgeError],
) -> None:
    model = Module(lambda x: x.reshape(2, 2, 2))
    error = refused(model, sdk.CaptureError, dynamic={"x": {0: BATCH}})
    assert "batch" in str(error)
    assert "dynamic" in str(error)


@pytest.mark.parametrize(
    ("dynamic", "words"),
    [
        ({"y": {0: BATCH}}, "unknown input 'y'"),
        ({"x": {2: BATCH}}, "does not fit the example input"),
        ({"x": {1: sdk.Dim("width", 8, 8, 16)}}, "does not fit the example input"),
    ],
)
def test_dynamic_that_does_not_fit_is_refused(
    dynamic: Any, words: str, refused: Callable[..., sdk.EdgeError]
) -> None:
    assert words in str(refused(Module(torch.relu), sdk.InputError, dynamic=dynamic))


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        (None, "needs example inputs"),
        ([], "needs example inputs"),
        ("x", "'x' is not a usable tensor"),
        ([[1.0, 2.0]], "'x' is not a usable tensor"),
        (np.array(["a"]), "'x' is not a usable tensor"),
        (torch.randn(2, 4, dtype=torch.complex64), "'x' is not a usable tensor"),
        ({"y": torch.randn(2, 4)}, "no input 'y'"),
        ((torch.randn(2, 4), torch.randn(2, 4)), "Too many example inputs"),
        (3.5, "'x' is not a usable tensor"),
    ],
    ids=["none", "empty", "text", "list", "strings", "complex", "name", "two", "number"],
)
def test_unusable_example_is_refused(
    inputs: Any, words: str, refused: Callable[..., sdk.EdgeError]
) -> None:
    assert words in str(refused(Module(torch.relu), sdk.InputError, inputs=inputs))


def test_example_of_another_shape_or_dtype_is_a_capture_error(
    refused: Callable[..., sdk.EdgeError],
) -> None:
    assert "(2x5 and 4x4)" in str(
        refused(Module(torch.relu), sdk.CaptureError, inputs=torch.randn(2, 5))
    )
    refused(Module(torch.relu), sdk.CaptureError, inputs=torch.ones(2, 4, dtype=torch.int64))


@pytest.mark.parametrize("model", [torch.relu, object(), 7, None, {"state": 1}])
def test_what_is_no_model_is_refused(model: Any, refused: Callable[..., sdk.EdgeError]) -> None:
    assert "cannot be compiled" in str(refused(model, sdk.InputError))


def test_program_has_its_own_dynamic_dims(refused: Callable[..., sdk.EdgeError]) -> None:
    example = torch.randn(2, 4)
    program = torch.export.export(Module(torch.relu).eval(), (example,))
    error = refused(program, sdk.InputError, dynamic={"x": {0: BATCH}})
    assert "has its dynamic dimensions already" in str(error)


def test_exported_program_keeps_its_dynamic_dims(tmp_path: Path) -> None:
    example = torch.randn(2, 4)
    model = Module(torch.relu).eval()
    shapes = {"x": {0: torch.export.Dim("batch", min=1, max=8)}}
    program = torch.export.export(model, (example,), dynamic_shapes=shapes)
    sdk.compile(program, inputs=example, target="torch", output=tmp_path / "m.edge", threads=1)
    with sdk.load(tmp_path / "m.edge") as loaded, torch.no_grad():
        for count in (1, 5, 8):
            x = torch.randn(count, 4)
            np.testing.assert_allclose(loaded.predict(x.numpy()), model(x).numpy(), rtol=1e-5)
        with pytest.raises(sdk.InputError, match="wrong shape"):
            loaded.predict(torch.randn(9, 4).numpy())


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("function", [torch.relu, branches], ids=["captured", "refused"])
def test_module_keeps_its_mode(
    training: bool, function: Callable[[Tensor], Any], tmp_path: Path
) -> None:
    model = nn.Sequential(nn.Dropout(0.5), Module(function)).train(training)
    model[0].train(not training)  # a part in another mode, as when layers are frozen
    modes = [part.training for part in model.modules()]
    try:
        sdk.compile(model, inputs=torch.randn(2, 4), target="torch", output=tmp_path / "m.edge")
    except sdk.CaptureError:
        assert function is branches
    assert [part.training for part in model.modules()] == modes


def test_training_mode_does_not_leak_into_the_artifact(tmp_path: Path) -> None:
    """Captured as in eval mode, whatever the mode: dropout and batch statistics are off."""
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5)).train()
    before = model[1].running_mean.clone()
    x = torch.randn(6, 4)
    sdk.compile(model, inputs=x, target="torch", output=tmp_path / "m.edge", threads=1)
    assert torch.equal(model[1].running_mean, before)
    with sdk.load(tmp_path / "m.edge") as loaded, torch.no_grad():
        want = model.eval()(x).numpy()
        np.testing.assert_allclose(loaded.predict(x.numpy()), want, rtol=1e-4, atol=1e-6)


def test_unsupported_operator_is_named(refused: Callable[..., sdk.EdgeError]) -> None:
    row("onnxruntime:cpu:fp32").require()
    error = refused(Module(torch.special.i0e), sdk.UnsupportedOperatorError, target="onnxruntime")
    assert str(error.got).startswith("aten.special_i0e")
    assert "return self.function(self.layer(x))" in str(error.got)
    assert "torch" in str(error.fix)


def test_operator_that_an_engine_lacks_compiles_for_the_one_that_has_it(tmp_path: Path) -> None:
    x = torch.randn(2, 4)
    model = Module(torch.special.i0e).eval()
    sdk.compile(model, inputs=x, target="torch", output=tmp_path / "m.edge", threads=1)
    with sdk.load(tmp_path / "m.edge") as loaded, torch.no_grad():
        np.testing.assert_allclose(loaded.predict(x.numpy()), model(x).numpy(), rtol=1e-5)
