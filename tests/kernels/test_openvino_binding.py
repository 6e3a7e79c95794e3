"""The extension of OpenVINO: every kernel and case in a model of one node."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import openvino
import pytest
import torch
from kernel_models import is_constant, model_of
from kernel_rows import ROWS, Row, differences, native, native_with, truth

import sdk
from sdk.kernels import openvino as binding
from sdk.kernels.spec import Case, KernelSpec

TYPES = {
    torch.float32: openvino.Type.f32,
    torch.float16: openvino.Type.f16,
    torch.bfloat16: openvino.Type.bf16,
    torch.int8: openvino.Type.i8,
    torch.uint8: openvino.Type.u8,
    torch.int32: openvino.Type.i32,
    torch.int64: openvino.Type.i64,
    torch.bool: openvino.Type.boolean,
    torch.float64: openvino.Type.f64,
}


def run_on_engine(spec: KernelSpec, case: Case, threads: int) -> list[torch.Tensor]:
    plain = spec.reference(*case.tensors, **case.attributes)
    plain = plain if isinstance(plain, tuple) else (plain,)
    core = openvino.Core()
    core.add_extension(str(binding._extension(native().path)))
    # what engines know of a model: sizes of layers, and not how many rows or tokens there are
    model = core.read_model(model_of(spec, case, list(plain), open_axes=1))
    hints = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads}
    request = core.compile_model(model, "CPU", hints).create_infer_request()
    for i, tensor in enumerate(case.tensors):
        if tensor is not None and not is_constant(i, tensor):
            request.set_tensor(f"x{i}", _tensor(tensor))
    request.infer()
    return [_torch(request.get_tensor(f"y{i}"), o) for i, o in enumerate(plain)]


def _tensor(tensor: torch.Tensor) -> openvino.Tensor:
    """By its bytes: NumPy has no bfloat16."""
    made = openvino.Tensor(TYPES[tensor.dtype], openvino.Shape(list(tensor.shape)))
    if tensor.numel():
        raw = tensor.contiguous().reshape(-1).view(torch.uint8).numpy()
        made.data.reshape(-1).view(np.uint8)[:] = raw
    return made


def _torch(tensor: openvino.Tensor, like: torch.Tensor) -> torch.Tensor:
    shape = tuple(tensor.shape)
    if 0 in shape:
        return torch.empty(shape, dtype=like.dtype)
    raw = np.ascontiguousarray(tensor.data).reshape(-1).view(np.uint8).copy()
    return torch.from_numpy(raw).view(like.dtype).view(shape)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_engine_runs_the_kernel(row: Row) -> None:
    native_with(row.name)
    spec = row.load()
    wrong: list[str] = []
    for case in spec.sample(np.random.default_rng(0)):
        wrong += differences(spec, case, run_on_engine(spec, case, 2), truth(spec, case))
    assert not wrong, "\n".join(wrong)


def test_another_release_gets_another_extension(monkeypatch: pytest.MonkeyPatch) -> None:
    kernels = native().path
    own = binding._extension(kernels)
    assert own.parent.name.startswith(f"openvino-{binding.version('openvino')}-")
    monkeypatch.setattr(binding, "version", lambda _: "2031.1.0")
    asked: list[str] = []
    monkeypatch.setattr(binding, "made", lambda _s, _o, key, file, _f: asked.append(key) or file)
    binding._extension.__wrapped__(kernels)
    assert asked[0].startswith("openvino-2031.1.0-")
    assert asked[0] != own.parent.name


def test_an_extension_for_another_release_is_refused(tmp_path: Path) -> None:
    """It needs another library of OpenVINO: the loader names it, and nothing runs."""
    own = binding._extension(native().path)
    other = tmp_path / own.name
    data = own.read_bytes()
    release = b"libopenvino.so."
    assert data.count(release) >= 1
    other.write_bytes(data.replace(release, b"libopenvin0.so."))
    with pytest.raises(RuntimeError, match=r"libopenvin0\.so"):
        openvino.Core().add_extension(str(other))


def test_an_extension_that_does_not_build_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> Path:
        raise sdk.EngineError("The kernels do not build.", got="error: no such header")

    monkeypatch.setattr(binding, "made", broken)
    with pytest.raises(sdk.KernelMissingError, match="does not build for OpenVINO") as caught:
        binding._extension.__wrapped__(native().path)
    assert "no such header" in str(caught.value)
