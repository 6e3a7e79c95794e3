"""Operators that an engine lacks: the error says which, where in the model, and what to do."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import sdk
from sdk.compilers import onnx_file
from sdk.compilers.capture import capture
from sdk.compilers.drawing import draws
from sdk.compilers.onnx_file import write_onnx
from sdk.compilers.program import source_of
from sdk.errors import EngineError, UnsupportedOperatorError
from sdk.signature import Dim

X = torch.linspace(-1, 1, 8).reshape(2, 4)
HERE = Path(__file__).name


class Inside(nn.Module):
    """A layer, and a function of what it gives: errors are to name the module `inner`."""

    class Inner(nn.Module):
        def __init__(self, function: object) -> None:
            super().__init__()
            self.function = function

        def forward(self, x: Tensor) -> Tensor:
            return self.function(x)  # type: ignore[operator, no-any-return]

    def __init__(self, function: object) -> None:
        super().__init__()
        self.layer, self.inner = nn.Linear(4, 4), self.Inner(function)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(self.layer(x))  # type: ignore[no-any-return]


def noise(x: Tensor) -> Tensor:
    return x + 0.1 * torch.randn_like(x)


def silent(x: Tensor) -> Tensor:
    return x + 0.0 * torch.randn(2, 4)


def refused(function: object, target: str, folder: Path) -> UnsupportedOperatorError:
    with pytest.raises(UnsupportedOperatorError) as caught:
        sdk.compile(Inside(function), inputs=X, target=target, output=folder / "model.edge")
    return caught.value


@pytest.mark.parametrize("engine", ["torch", "onnxruntime"])
def test_a_model_that_draws_is_refused_before_it_is_compared(engine: str, tmp_path: Path) -> None:
    error = refused(noise, engine, tmp_path)
    assert "depend on random numbers" in error.what
    assert str(error.got).startswith(f"aten.randn_like.default in module 'inner' at {HERE}:")
    assert "an input of the model" in str(error.fix)


def test_the_reference_engine_refuses_an_operator_when_it_is_compiled(tmp_path: Path) -> None:
    error = refused(silent, "torch", tmp_path)
    assert error.what == "The operator aten.randn.default cannot be stored for the engine 'torch'."
    assert str(error.got).startswith(f"aten.randn.default in module 'inner' at {HERE}:")
    assert "an input of the model" in str(error.fix)


def test_what_is_drawn_for_nothing_does_no_harm(tmp_path: Path) -> None:
    model = Inside(silent).eval()
    made = sdk.compile(model, inputs=X, target="onnxruntime", output=tmp_path / "model.edge")
    with sdk.load(made.path) as loaded, torch.no_grad():
        np.testing.assert_allclose(loaded.predict(X.numpy()), model.layer(X), atol=1e-6)


def test_dropout_and_attention_draw_nothing_at_inference() -> None:
    def drops(x: Tensor) -> Tensor:
        one = x[None]
        return F.dropout(F.scaled_dot_product_attention(one, one, one)[0], 0.5, training=False)

    nodes = capture(Inside(drops), X).exported.graph.nodes
    assert "aten.scaled_dot_product_attention.default" in {str(node.target) for node in nodes}
    assert not any(map(draws, nodes))
    (drawn,) = filter(draws, capture(Inside(noise), X).exported.graph.nodes)
    assert str(drawn.target) == "aten.randn_like.default"


SHAPES: list[Tensor] = []


@torch.library.custom_op("refused::fragile", mutates_args=())
def fragile(x: Tensor) -> Tensor:
    return x + 1


@fragile.register_fake
def _(x: Tensor) -> Tensor:
    if SHAPES:
        raise RuntimeError("\x1b[96mno shape\x1b[0m is known for this")
    return torch.empty_like(x)


def test_an_operator_that_cannot_be_taken_apart_is_named(tmp_path: Path) -> None:
    program = capture(Inside(fragile), X)
    SHAPES.append(X)
    try:
        with pytest.raises(UnsupportedOperatorError) as caught:
            write_onnx(program, tmp_path / "model.onnx")
    finally:
        SHAPES.clear()
    error = caught.value
    assert error.what == (
        "torch.onnx could not translate the operator refused.fragile.default: "
        "RuntimeError: no shape is known for this"
    )
    assert str(error.got).startswith(f"refused.fragile.default in module 'inner' at {HERE}:")
    assert error.fix == "write the operator with ordinary ones"
    with pytest.raises(UnsupportedOperatorError, match="no shape is known"):
        write_onnx(program, tmp_path / "model.onnx")  # it is not tried again


def test_other_failures_are_told_without_advice_or_colours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        advice = "Failed. \x1b[96mThis is step 2/3\x1b[0m. Create an issue in the PyTorch"
        raise torch.onnx.errors.OnnxExporterError(advice) from RuntimeError(
            "\x1b[31mPending symbols\x1b[0m {u18}\nDid you accidentally call new_dynamic_size()?"
        )

    monkeypatch.setattr(onnx_file, "_to_model", fail)
    with pytest.raises(EngineError) as caught:
        write_onnx(capture(Inside(torch.relu), X), tmp_path / "model.onnx")
    assert str(caught.value) == (
        "torch.onnx could not translate the program: RuntimeError: Pending symbols {u18}"
    )


def test_scalar_operators_have_names() -> None:
    def longest(x: Tensor) -> Tensor:
        return x.new_zeros(torch.sym_max(x.shape[0], 3) + 1)

    program = capture(Inside(longest), X, {"x": {0: Dim("n", 1, 2, 9)}})
    calls = [node for node in program.exported.graph.nodes if node.op == "call_function"]
    assert {"torch.sym_max", "operator.add"} <= {source_of(node).operator for node in calls}
