"""CUDA code of kernels compiles for all compute capabilities; its maths, where there is a GPU."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

import sdk
from sdk.kernels import cuda
from sdk.kernels.building import HERE

SOURCES = sorted(HERE.glob("*/cuda.cu"))


def test_without_nvcc_it_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(cuda, "nvcc", lambda: None)
    with pytest.raises(sdk.EngineUnavailableError, match="cannot be compiled here"):
        cuda.compile_cuda(tmp_path / "x" / "cuda.cu", tmp_path / "x.so", [80])


@pytest.mark.skipif(cuda.nvcc() is None, reason="no nvcc")
def test_code_that_does_not_compile_is_told(tmp_path: Path) -> None:
    (tmp_path / "broken").mkdir()
    source = tmp_path / "broken" / "cuda.cu"
    source.write_text("this is no code\n")
    with pytest.raises(sdk.EngineError, match="CUDA code of broken does not build"):
        cuda.compile_cuda(source, tmp_path / "x.so", [80])


@pytest.mark.slow
@pytest.mark.skipif(cuda.nvcc() is None, reason="no nvcc")
@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.parent.name)
def test_code_compiles_for_every_capability(source: Path, tmp_path: Path) -> None:
    numbers = cuda.capabilities()
    assert {80, 86, 89, 90, 100, 120} <= set(numbers)
    library = tmp_path / "kernel.so"
    cuda.compile_cuda(source, library, numbers)
    symbols = subprocess.run(
        ["nm", "-D", "--defined-only", library], capture_output=True, text=True, check=True
    )
    assert f" T {source.parent.name}_cuda\n" in symbols.stdout
