"""Compile for ONNX Runtime: an ONNX file; the engine optimises it when it loads."""

from __future__ import annotations

from pathlib import Path

from sdk.compilers.onnx_file import write_onnx
from sdk.compilers.program import Build, Program
from sdk.compilers.weight_only_contrib import use_contrib
from sdk.compilers.weight_only_graph import stored_bits
from sdk.target import Target


def compile_program(program: Program, _target: Target, folder: Path) -> Build:
    """Write `model.onnx`."""
    file = folder / "model.onnx"
    sources = write_onnx(program, file)
    if bits := stored_bits(program):
        use_contrib(file, bits)
    return Build(file, sources)
