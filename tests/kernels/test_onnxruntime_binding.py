"""The custom operators of ONNX Runtime: every kernel and case in a model of one node."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from kernel_models import ELEMENT, is_constant, model_of
from kernel_rows import ROWS, Row, differences, native, native_with, truth

from sdk.kernels.interface import DTYPES, LETTERS
from sdk.kernels.spec import Case, KernelSpec


def options(threads: int) -> onnxruntime.SessionOptions:
    made = onnxruntime.SessionOptions()
    made.intra_op_num_threads = threads
    made.log_severity_level = 4
    made.add_session_config_entry("edge.threads", str(threads))
    made.register_custom_ops_library(str(native().path))
    return made


def run_on_engine(spec: KernelSpec, case: Case, threads: int) -> list[torch.Tensor]:
    """Inputs and outputs bound by address: NumPy has no bfloat16."""
    plain = spec.reference(*case.tensors, **case.attributes)
    plain = plain if isinstance(plain, tuple) else (plain,)
    outputs = [torch.full_like(output, 77).contiguous() for output in plain]
    session = onnxruntime.InferenceSession(model_of(spec, case, outputs), options(threads))
    binding, alive = session.io_binding(), []
    for i, tensor in enumerate(case.tensors):
        if tensor is not None and not is_constant(i, tensor):
            alive.append(_held(tensor))
            binding.bind_input(
                f"x{i}", "cpu", 0, ELEMENT[tensor.dtype], list(tensor.shape), alive[-1].data_ptr()
            )
    for i, output in enumerate(outputs):
        alive.append(_held(output))
        binding.bind_output(
            f"y{i}", "cpu", 0, ELEMENT[output.dtype], list(output.shape), alive[-1].data_ptr()
        )
    session.run_with_iobinding(binding)
    held = alive[-len(outputs) :]
    return [h[: o.numel()].view(o.shape) for h, o in zip(held, outputs, strict=True)]


def _held(tensor: torch.Tensor) -> torch.Tensor:
    """A flat copy that has an address even where there are no elements."""
    return torch.cat([tensor.reshape(-1), torch.zeros(1, dtype=tensor.dtype)])


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_engine_runs_the_kernel(row: Row, threads: int) -> None:
    native_with(row.name)
    spec = row.load()
    wrong: list[str] = []
    for case in spec.sample(np.random.default_rng(0)):
        wrong += differences(spec, case, run_on_engine(spec, case, threads), truth(spec, case))
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_table_says_what_types_there_are(row: Row) -> None:
    """ONNX Runtime finds a kernel by `edge_kernel.types`: each sample has its line there."""
    spec, letters = row.load(), dict(zip(DTYPES, LETTERS, strict=True))
    told = (native_with(row.name).kernels[row.name].types or b"").decode().split(" ")

    def letter(tensor: torch.Tensor) -> str:
        return letters[str(tensor.dtype).removeprefix("torch.")]

    for case in spec.sample(np.random.default_rng(0)):
        plain = spec.reference(*case.tensors, **case.attributes)
        outputs = plain if isinstance(plain, tuple) else (plain,)
        tensors = [*case.tensors, *[None] * (len(spec.tensors) - len(case.tensors))]
        wanted = [letter(t) if t is not None else None for t in (*tensors, *outputs)]
        assert any(
            len(line) == len(wanted) + 1
            and all(w in (None, c) for w, c in zip(wanted, line.replace(">", ""), strict=True))
            for line in told
        ), f"{case.name}: none of {told} is {wanted}"


def test_refusal_names_the_kernel(tmp_path: Path) -> None:
    spec = next(row for row in ROWS if row.name == "scale_add").load()
    x = torch.zeros(2, 3)
    model = model_of(spec, Case("wrong", (x, None)), [x])
    good = onnxruntime.InferenceSession(model, options(1))
    assert good.run(None, {"x0": x.numpy()})[0].shape == (2, 3)
    model = model_of(spec, Case("wrong", (x, torch.zeros(0, 3))), [x])
    session = onnxruntime.InferenceSession(model, options(1))
    with pytest.raises(Exception, match="edge::scale_add: y must have the shape of x"):
        session.run(None, {"x0": x.numpy(), "x1": np.zeros((4, 3), np.float32)})


def test_threads_that_are_no_number_are_refused() -> None:
    made = onnxruntime.SessionOptions()
    made.add_session_config_entry("edge.threads", "many")
    with pytest.raises(Exception, match=r"edge\.threads is not usable"):
        made.register_custom_ops_library(str(native().path))
