"""CUDA code of kernels against its reference, its blocks and warps made by plain C++.

It shows that the code computes the right numbers, waits where it must and stays in its buffers, and
nothing of a GPU's speed or rounding.
"""

from __future__ import annotations

import ctypes
import re
import subprocess
from pathlib import Path

import pytest
import torch
from kernel_rows import GUARD, ROWS, SENTINEL, Row, differences, guarded, truth

from sdk.errors import EngineError
from sdk.kernels.building import HERE
from sdk.kernels.cmake import compiler
from sdk.kernels.interface import CTensor, CValue
from sdk.kernels.library import _described
from sdk.kernels.spec import Case, KernelSpec

MODEL = Path(__file__).with_name("cuda_in_c.h")
ROWS_WITH_CUDA = [row for row in ROWS if (HERE / row.name / "cuda.cu").is_file()]
LAUNCH = re.compile(r"(\w+(?:<[^<>;]*>)?)<<<(.*?)>>>\((.*?)\);", re.DOTALL)
DYNAMIC = re.compile(r"extern __shared__ (\w+) (\w+)\[\];")


def in_cpp(text: str) -> str:
    """What is no C++, launches and shared memory of any size, by calls of the model."""
    text = LAUNCH.sub(r"cuda_in_c::launch(\2)([=] { \1(\3); });", text)
    text = DYNAMIC.sub(r"\1 *const \2 = reinterpret_cast<\1 *>(cuda_in_c::dynamic);", text)
    assert "<<<" not in text
    return text


def built(source: Path, folder: Path) -> ctypes.CDLL:
    """The library of one kernel's CUDA code, for the processor."""
    for header in ("cuda_runtime.h", "cuda_bf16.h", "cuda_fp16.h"):
        (folder / header).write_text("")
    for header in (HERE / "bindings" / "cuda").glob("*.cuh"):
        (folder / "cuda").mkdir(exist_ok=True)
        (folder / "cuda" / header.name).write_text(in_cpp(header.read_text()))
    code, library = folder / "cuda.cc", folder / "cuda.so"
    code.write_text(in_cpp(source.read_text()))
    command = [
        compiler(), "-std=c++17", "-O1", "-U_FORTIFY_SOURCE", "-shared", "-fPIC", "-include", MODEL,
        "-I", folder, "-I", HERE / "native", "-I", source.parent, "-o", library, code,
    ]  # fmt: skip
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return ctypes.CDLL(str(library))


def run_cuda(code: ctypes.CDLL, spec: KernelSpec, case: Case) -> list[torch.Tensor]:
    """The outputs; around them and the workspace nothing may change."""
    missing = [None] * (len(spec.tensors) - len(case.tensors))
    inputs = (CTensor * len(spec.tensors))(*map(_described, (*case.tensors, *missing)))
    made = spec.reference(*case.tensors, **case.attributes)
    outputs, check = guarded(made if isinstance(made, tuple) else (made,))
    results = (CTensor * len(outputs))(*map(_described, outputs))
    size = getattr(code, f"{spec.short}_cuda_workspace")
    size.restype = ctypes.c_size_t
    values = _values(spec, case)
    wanted = size(inputs, values)
    room = torch.full((wanted + 2 * GUARD + 256,), SENTINEL, dtype=torch.uint8)
    start = GUARD + -(room.data_ptr() + GUARD) % 256
    function = getattr(code, f"{spec.short}_cuda")
    function.restype = ctypes.c_char_p
    message = function(
        inputs, len(inputs), values, results,
        ctypes.c_void_p(room.data_ptr() + start), ctypes.c_void_p(None),
    )  # fmt: skip
    if message is not None:
        raise EngineError(f"{case.name}: refused", got=message.decode())
    ends = torch.cat([room[:start], room[start + wanted :]])
    assert bool((ends == SENTINEL).all()), f"{case.name}: written outside of the workspace"
    check(case.name)
    return outputs


def _values(spec: KernelSpec, case: Case) -> ctypes.Array[CValue]:
    values = (CValue * max(len(spec.attributes), 1))()
    bound = spec.bound(case.attributes)
    for value, parameter, given in zip(values, spec.attributes, bound, strict=False):
        if parameter.kind == "float":
            value.number = float(given)
        else:
            value.integer = int(given)
    return values


@pytest.mark.parametrize("row", ROWS_WITH_CUDA, ids=lambda row: row.name)
def test_cuda_code_computes_the_reference(row: Row, tmp_path: Path) -> None:
    code, spec = built(HERE / row.name / "cuda.cu", tmp_path), row.load()
    wrong: list[str] = []
    for case in row.cases():
        wrong += differences(spec, case, run_cuda(code, spec, case), truth(spec, case))
    assert not wrong, "\n".join(wrong)
