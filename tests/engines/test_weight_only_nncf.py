"""Methods that look at data: better than rounding, one program for every engine, or refused."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

import sdk
from sdk.compilers import lower
from sdk.compilers.capture import capture
from sdk.compilers.program import Program
from sdk.compilers.weight_only import compress
from sdk.errors import QuantizationError
from sdk.parity import TOLERANCE, compare
from sdk.runtimes import open_session
from sdk.signature import Array
from sdk.target import Target

pytest.importorskip("nncf")
METHODS = ("awq", "scale_estimation", "gptq")
WIDTH = 64


class Gated(nn.Module):
    """A gated product with a few inputs that are much larger, as in trained Llamas."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up = nn.Linear(WIDTH, 128), nn.Linear(WIDTH, 128)
        self.down = nn.Linear(128, WIDTH)
        self.register_buffer("size", torch.ones(WIDTH))
        self.register_buffer("unlike", torch.ones(128))
        self.size[::16], self.unlike[5::32] = 10.0, 20.0

    def forward(self, x: Tensor) -> Tensor:
        y = x * self.size
        return self.down(nnf.silu(self.gate(y)) * (self.up(y) * self.unlike))


@lru_cache(maxsize=1)
def program() -> Program:
    torch.manual_seed(0)
    model = Gated().eval()
    return capture(model, {"x": torch.randn(8, WIDTH)}, {"x": {0: sdk.Dim("rows", 1, 8, 64)}})


def feeds(count: int, seed: int) -> list[dict[str, Array]]:
    """Rows that lie near a few directions: what GPTQ makes use of."""
    draw = np.random.default_rng(seed)
    basis = np.random.default_rng(0).standard_normal((32, WIDTH))
    near = (draw.standard_normal((64, 32)) @ basis for _ in range(count))
    return [{"x": (x + 0.3 * draw.standard_normal(x.shape)).astype(np.float32)} for x in near]


@lru_cache(maxsize=4)
def made(method: str) -> Program:
    return compress(program(), "int4", method=method, calibration=feeds(8, 1))


def loss(compressed: Program) -> float:
    (feed,) = feeds(1, 2)
    want, got = program().reference(feed)["output"], compressed.reference(feed)["output"]
    return float(np.linalg.norm(got - want) / np.linalg.norm(want))


@pytest.mark.parametrize("method", METHODS)
def test_data_makes_int4_better_than_rounding(method: str) -> None:
    before = program().digest()
    better = {"awq": 1.0, "scale_estimation": 0.9, "gptq": 0.9}[method]
    assert loss(made(method)) < better * loss(compress(program(), "int4"))
    assert made(method).settings == {"method": method, "group_size": "32"}
    assert made(method).float_layers == ()
    assert program().digest() == before, "the fp32 program was changed"


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino", "torch"])
def test_engines_run_them(engine: str, tmp_path: Path) -> None:
    compressed, target = made("awq"), Target(engine, precision="int4")
    build = lower(compressed, target, tmp_path / "build")
    session = open_session(build.file, compressed.signature, target, threads=1)
    (feed,) = feeds(1, 2)
    parity = compare(session.run(feed), compressed.reference(feed), TOLERANCE["int4"])
    assert parity.ok, parity
    session.close()


@pytest.mark.parametrize("method", METHODS)
def test_kept_layers_stay_as_they_are(method: str) -> None:
    compressed = compress(
        program(), "int4", method=method, calibration=feeds(2, 1), keep_float=["gate"]
    )
    assert compressed.float_layers == ("gate",)
    state, base = compressed.exported.state_dict, program().exported.state_dict
    kept = next(tensor for name, tensor in state.items() if "gate" in name and "weight" in name)
    assert torch.equal(kept, base["gate.weight"])


@pytest.mark.parametrize("method", METHODS)
def test_data_of_zeros_gives_finite_scales_or_an_error(method: str) -> None:
    zeros = [{"x": np.zeros((8, WIDTH), np.float32)}]
    try:
        compressed = compress(program(), "int4", method=method, calibration=zeros)
    except QuantizationError as error:
        assert "zero or infinite" in str(error)  # noqa: PT017  # either outcome is right
        return
    assert np.isfinite(compressed.reference(feeds(1, 2)[0])["output"]).all()
    assert loss(compressed) < 0.5


def test_data_that_is_not_finite_is_refused() -> None:
    bad = [{"x": np.full((8, WIDTH), np.inf, np.float32)}]
    with pytest.raises(QuantizationError, match="NaN or infinity in 'x'"):
        compress(program(), "int4", method="awq", calibration=bad)
