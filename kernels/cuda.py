"""CUDA code of kernels, compiled by nvcc: `cuda.cu` in a kernel's folder.

It has two plain C functions, on pointers to the device's memory and the caller's stream. There is
one of `inputs` for each tensor of the specification; those that are left out have the dtype NONE:

    size_t <name>_cuda_workspace(const edge_tensor *inputs, const edge_value *attributes);
    const char *<name>_cuda(const edge_tensor *inputs, int32_t count, const edge_value *attributes,
                            edge_tensor *outputs, void *workspace, void *stream);

The first says how many bytes of the device's memory the second needs, aligned to 256, and may be
left out. Outputs are dense. Inputs that are not dense or not aligned, unlike TensorRT's, are copied
into the workspace first. What the code of kernels shares is in `bindings/cuda`.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from sdk.errors import EngineError, EngineUnavailableError
from sdk.kernels.building import HERE

FIRST, LAST = 80, 120
CODE = re.compile(r"sm_(\d+)$", re.MULTILINE)


def nvcc() -> str | None:
    """CUDA's compiler, where there is one."""
    return shutil.which("nvcc")


def capabilities() -> tuple[int, ...]:
    """Compute capabilities from 8.0 to 12.0 that the installed nvcc compiles for."""
    done = subprocess.run([_nvcc(), "--list-gpu-code"], capture_output=True, text=True, check=True)
    known = sorted({int(number) for number in CODE.findall(done.stdout)})
    return tuple(number for number in known if FIRST <= number <= LAST)


def compile_cuda(source: Path, output: Path, numbers: Sequence[int]) -> None:
    """The code of one kernel as a shared library for all these capabilities."""
    targets = [f"-gencode=arch=compute_{n},code=sm_{n}" for n in numbers]
    command = [_nvcc(), "-O3", "-std=c++17", "-shared", "-Xcompiler", "-fPIC", *targets,
               "-I", HERE / "native", "-I", HERE / "bindings", "-o", output, source]  # fmt: skip
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    if done.returncode:
        raise EngineError(
            f"The CUDA code of {source.parent.name} does not build.",
            got=(done.stdout + done.stderr)[-2000:],
            fix=f"run: {' '.join(map(str, command))}",
        )


def _nvcc() -> str:
    found = nvcc()
    if found is None:
        raise EngineUnavailableError(
            "CUDA code cannot be compiled here.", got="no nvcc", fix="install the CUDA toolkit"
        )
    return found
