"""One ONNX file for engines with and without the kernels: each node carries its body."""

from __future__ import annotations

import itertools

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from kernel_models import Call
from kernel_rows import EXAMPLES, ROWS, Row, differences, native_with, truth
from onnx.inliner import inline_local_functions
from torch import nn

from sdk.compilers.capture import capture
from sdk.compilers.kernels import ANY, Binding, _plan, with_policy
from sdk.compilers.onnx_file import write_onnx
from sdk.compilers.program import Program
from sdk.compilers.tensorrt_build import Order, build_engine
from sdk.extras import installed
from sdk.kernels.needs import PORTABLE
from sdk.kernels.registry import spec_in
from sdk.kernels.spec import KernelSpec
from sdk.nvidia import RTX

CASES = 3  # of each kernel: an export takes seconds
SKIPPED = (torch.bfloat16,)  # NumPy has none, and so no signature has


def portable(model: nn.Module, tensors: list[torch.Tensor], spec: KernelSpec) -> Program:
    """The program whose kernels stay nodes with bodies."""
    program = with_policy(capture(model, [t.contiguous() for t in tensors]), PORTABLE)
    binding = Binding("test", {spec.short: (spec.version, ANY)}, PORTABLE)
    return _plan(program, binding).program


def _rows() -> list[object]:
    slow = pytest.mark.slow
    quick = {file.parent.name for file in EXAMPLES.glob("*/spec.py")}
    return [pytest.param(r, id=r.name, marks=() if r.name in quick else slow) for r in ROWS]


@pytest.mark.parametrize("row", _rows())
def test_onnxruntime_without_the_library_runs_the_body(
    row: Row, tmp_path_factory: pytest.TempPathFactory
) -> None:
    spec = row.load()
    usable = (
        case
        for case in spec.sample(np.random.default_rng(0))
        if not any(t is not None and (t.dtype in SKIPPED or not t.numel()) for t in case.tensors)
    )
    wrong: list[str] = []
    for case in itertools.islice(usable, CASES):
        tensors = [t for t in case.tensors if t is not None]
        program = portable(Call(spec, case), tensors, spec)
        file = tmp_path_factory.mktemp("model") / "model.onnx"
        write_onnx(program, file)
        assert [f.name for f in onnx.load(file).functions] == [spec.short]
        session = onnxruntime.InferenceSession(file)
        names = [value.name for value in session.get_inputs()]
        feed = dict(zip(names, (t.contiguous().numpy() for t in tensors), strict=True))
        got = [torch.from_numpy(y) for y in session.run(None, feed)]
        wrong += differences(spec, case, got, truth(spec, case))
    assert not wrong, "\n".join(wrong)


class Two(nn.Module):
    """Two nodes with different bodies around a layer."""

    def __init__(self, spec: KernelSpec) -> None:
        super().__init__()
        self.linear, self.spec = nn.Linear(8, 8), spec

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: n x 8."""
        return self.spec(self.spec(self.linear(x), x, alpha=0.25).relu(), x, alpha=-3.0)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Program, bytes, np.ndarray, np.ndarray]:
    """The program, its ONNX file, an input and the answer."""
    torch.manual_seed(0)
    spec = spec_in(EXAMPLES / "scale_add")
    model, x = Two(spec).eval(), torch.randn(5, 8)
    program = portable(model, [x], spec)
    file = tmp_path_factory.mktemp("two") / "model.onnx"
    write_onnx(program, file)
    return program, file.read_bytes(), x.numpy(), model(x).detach().numpy()


def test_onnxruntime_with_the_library_runs_the_kernel(two: tuple) -> None:
    _, data, x, want = two
    options = onnxruntime.SessionOptions()
    options.register_custom_ops_library(str(native_with("scale_add").path))
    options.optimized_model_filepath = ""
    session = onnxruntime.InferenceSession(data, options)
    np.testing.assert_allclose(session.run(None, {"x": x})[0], want, rtol=1e-5, atol=1e-6)


def test_an_inliner_makes_ordinary_operators_of_it(two: tuple) -> None:
    _, data, x, want = two
    model = onnx.load_from_string(data)
    assert [f.overload for f in model.functions] == ["", "1"]
    inlined = inline_local_functions(model)
    assert not [node for node in inlined.graph.node if node.domain]
    session = onnxruntime.InferenceSession(inlined.SerializeToString())
    np.testing.assert_allclose(session.run(None, {"x": x})[0], want, rtol=1e-5, atol=1e-6)


@pytest.mark.skipif(not installed(RTX), reason="tensorrt-rtx is not installed")
def test_tensorrt_rtx_builds_it(two: tuple) -> None:
    """It has no plugins: it takes the bodies."""
    program, data, _, _ = two
    engine = build_engine(data, {}, Order(RTX, program.signature, "fp32", ["sm89"]))
    assert len(engine) > 1000
