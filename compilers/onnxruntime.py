"""Compile for ONNX Runtime: an ONNX file; the engine optimises it when it loads."""

from __future__ import annotations

from pathlib import Path

from sdk.compilers.onnx_file import write_onnx
from sdk.compilers.program import Build, Program
from sdk.target import Target


def compile_program(program: Program, _target: Target, folder: Path) -> Build:
    """Write `model.onnx`."""
    file = folder / "model.onnx"
    return Build(file, write_onnx(program, file))
