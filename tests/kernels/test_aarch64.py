"""Native code for 64-bit ARM, cross-compiled and run by an emulator, against its reference."""

from __future__ import annotations

import ctypes
import shutil
import struct
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from kernel_rows import differences, truth

from sdk.kernels import registry
from sdk.kernels.interface import DTYPES, NONE, CTensor
from sdk.kernels.spec import Case, KernelSpec

KERNELS = Path(registry.__file__).parent
COMPILER, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64-static"
# With and without the instructions for dot products.
PROCESSORS = ("max", "cortex-a53")
NATIVE = [name for name in registry.names() if (KERNELS / name / "cpu.cc").is_file()]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    missing = [tool for tool in (COMPILER, EMULATOR) if shutil.which(tool) is None]
    if missing:
        pytest.skip(
            f"no {' and no '.join(missing)}: apt-get install g++-aarch64-linux-gnu qemu-user-static"
        )
    return tmp_path_factory.mktemp("aarch64")


def program(name: str, folder: Path) -> Path:
    """The kernel with what runs it, compiled once."""
    made = folder / name
    if not made.is_file():
        rows = folder / f"{name}.rows"
        rows.mkdir()
        (rows / "edge_kernels.inc").write_text(f"EDGE_KERNEL({name})\n")
        sources = [
            Path(__file__).with_name("run_cases.cc"),
            *(KERNELS / "native" / file for file in ("cpu.cc", "table.cc")),
            KERNELS / name / "cpu.cc",
            *(KERNELS / name).glob("cpu_neon.cc"),
        ]
        command = [COMPILER, "-std=c++17", "-O2", "-static", "-I", KERNELS / "native", "-I", rows]
        done = subprocess.run(
            [*command, *sources, "-o", made], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
    return made


def question(spec: KernelSpec, case: Case) -> bytes:
    """What run_cases.cc reads."""
    values = spec.bound(case.attributes)
    parts = [struct.pack("<ii", len(case.tensors), len(values))]
    kinds = [p.kind for p in spec.attributes]
    parts += [
        struct.pack("<d" if k == "float" else "<q", v) for k, v in zip(kinds, values, strict=True)
    ]
    for tensor in case.tensors:
        described, raw = CTensor(dtype=NONE), b""
        if tensor is not None:
            dense = torch.empty(tensor.shape, dtype=tensor.dtype).copy_(tensor)
            described.rank, described.dtype = dense.ndim, DTYPES.index(_name(dense))
            described.shape[: dense.ndim] = list(dense.shape)
            described.strides[: dense.ndim] = list(dense.stride())
            raw = dense.reshape(-1).view(torch.uint8).numpy().tobytes()
        parts += [bytes(described), struct.pack("<q", len(raw)), raw]
    return b"".join(parts)


def answer(data: memoryview, spec: KernelSpec) -> tuple[list[torch.Tensor], memoryview]:
    """The outputs of one case, and what follows."""
    (refusal,) = struct.unpack_from("<i", data)
    assert refusal == 0, bytes(data[4 : 4 + refusal])
    data, outputs = data[4:], []
    size = ctypes.sizeof(CTensor)
    for _ in range(spec.outputs):
        described = CTensor.from_buffer_copy(data[:size])
        (count,) = struct.unpack_from("<q", data, size)
        raw = torch.frombuffer(
            bytearray(data[size + 8 : size + 8 + count]) or bytearray(8), dtype=torch.uint8
        )
        dtype = getattr(torch, DTYPES[described.dtype])
        outputs.append(raw[:count].view(dtype).reshape(described.shape[: described.rank]))
        data = data[size + 8 + count :]
    return outputs, data


def _name(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


@pytest.mark.parametrize("processor", PROCESSORS)
@pytest.mark.parametrize("name", NATIVE)
def test_native_code_computes_the_reference(name: str, processor: str, folder: Path) -> None:
    spec = registry.spec_of(name)
    cases = list(spec.sample(np.random.default_rng(0)))
    done = subprocess.run(
        [EMULATOR, "-cpu", processor, program(name, folder)],
        input=b"".join(question(spec, case) for case in cases), capture_output=True, check=True,
    )  # fmt: skip
    data, wrong = memoryview(done.stdout), list[str]()
    for case in cases:
        got, data = answer(data, spec)
        wrong += differences(spec, case, got, truth(spec, case))
    assert not wrong, "\n".join(wrong)
