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
from sdk.kernels.interface import CTensor, values_of
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
    """The library of one kernel's CUDA code, for the processor; skips without a compiler."""
    if compiler() is None:
        pytest.skip("no C++ compiler")
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
    made = spec.reference(*case.tensors, **case.attributes)
    outputs, check = guarded(made if isinstance(made, tuple) else (made,))
    call_cuda(code, spec, case, outputs)
    check(case.name)
    return outputs


def call_cuda(code: ctypes.CDLL, spec: KernelSpec, case: Case, outputs: list[torch.Tensor]) -> None:
    """Fill the outputs; EngineError has what the code refuses."""
    missing = [None] * (len(spec.tensors) - len(case.tensors))
    inputs = (CTensor * len(spec.tensors))(*map(_described, (*case.tensors, *missing)))
    results = (CTensor * len(outputs))(*map(_described, outputs))
    kinds = [parameter.kind == "float" for parameter in spec.attributes]
    values = values_of(kinds, spec.bound(case.attributes))
    size = getattr(code, f"{spec.short}_cuda_workspace")
    size.restype = ctypes.c_size_t
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


PROBE = """
#include "cuda/tensors.cuh"
namespace {
__global__ void turn(const float *x, float *y, int kind) {
    __shared__ float all[64];
    const int i = threadIdx.x;
    all[63 - i] = x[i];
    if (kind != 1) __syncthreads();
    if (kind == 2 && i < 32) __syncthreads();
    if (kind == 2 && i >= 32) __syncwarp();
    if (kind == 3) all[i] = static_cast<float>(edge::load_vector(x + 1).x);
    if (kind == 4) all[i] = __shfl_xor_sync(0xffffu, all[i], 1);
    y[i] = all[i];
}
}
extern "C" const char *probe(const float *x, float *y, int kind) {
    turn<<<kind == 5 ? dim3(1, 70000) : dim3(1), kind == 6 ? 48 : 64, 0, nullptr>>>(x, y, kind);
    return edge::last_failure();
}
"""
FAULTS = {
    2: "wait for one another at different places",
    3: "off its alignment",
    4: "a shuffle of part of a warp",
    5: "a grid that no device takes",
    6: "of part of a warp",
}


def test_the_model_notices_what_a_device_would(tmp_path: Path) -> None:
    source = tmp_path / "probe" / "cuda.cu"
    source.parent.mkdir()
    source.write_text(PROBE)
    probe = built(source, tmp_path).probe
    probe.restype = ctypes.c_char_p
    x, y = torch.arange(72, dtype=torch.float32)[:64], torch.zeros(64)
    pointers = [ctypes.c_void_p(t.data_ptr()) for t in (x, y)]
    assert probe(*pointers, 0) is None
    assert torch.equal(y, x.flip(0))
    assert probe(*pointers, 1) is None
    assert not torch.equal(y, x.flip(0))  # without a wait, some are not there yet
    for kind, message in FAULTS.items():
        assert message in probe(*pointers, kind).decode()
        assert probe(*pointers, 0) is None


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    row = next(row for row in ROWS_WITH_CUDA if row.name == "residual_vq_decode")
    code, spec = built(HERE / row.name / "cuda.cu", tmp_path), row.load()
    codes, books = torch.zeros(3, 2, dtype=torch.int64), torch.zeros(2, 4, 5)
    made = run_cuda(code, spec, Case("fits", (codes, books)))
    assert torch.equal(made[0], torch.zeros(3, 5))
    for tensors in ((codes.int(), books), (codes, books.double()), (codes, books[0])):
        with pytest.raises(EngineError) as caught:
            call_cuda(code, spec, Case("does not", tensors), made)
        assert "expected" in str(caught.value.got)


@pytest.mark.parametrize("row", ROWS_WITH_CUDA, ids=lambda row: row.name)
def test_cuda_code_computes_the_reference(row: Row, tmp_path: Path) -> None:
    code, spec = built(HERE / row.name / "cuda.cu", tmp_path), row.load()
    wrong: list[str] = []
    for case in row.cases():
        wrong += differences(spec, case, run_cuda(code, spec, case), truth(spec, case))
    assert not wrong, "\n".join(wrong)
