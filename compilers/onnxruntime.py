"""Compile for ONNX Runtime: an ONNX file; the engine optimises it when it loads.

The NPU's may be what QNN compiled already: see `qnn.py`.
"""

from __future__ import annotations

from pathlib import Path

from sdk.compilers import qnn
from sdk.compilers.fixed import check_shapes
from sdk.compilers.onnx_channels import fill_channels
from sdk.compilers.onnx_classifiers import flatten_classifiers
from sdk.compilers.onnx_decoder import use_in_place
from sdk.compilers.onnx_decoder.fused import fuse
from sdk.compilers.onnx_file import write_onnx
from sdk.compilers.onnx_gates import fold_gates
from sdk.compilers.onnx_linear import use_kernel
from sdk.compilers.onnx_norms import divide_by_roots
from sdk.compilers.program import Build, Program
from sdk.compilers.weight_only_contrib import use_contrib
from sdk.compilers.weight_only_graph import stored_bits
from sdk.kernels.needs import NATIVE
from sdk.target import Target


def compile_program(program: Program, target: Target, folder: Path) -> Build:
    """Write `model.onnx`, or `decoder.onnx` for a step whose cache is written in place."""
    check_shapes(program.signature, target)
    file = folder / "model.onnx"
    sources = write_onnx(program, file)
    if target.device == "cpu":
        divide_by_roots(file)
    if bits := stored_bits(program):
        use_contrib(file, bits)
    if program.precision == "int8" and target.device == "cpu":
        flatten_classifiers(file)
        fold_gates(file, swishes=True)
        fill_channels(file)
    if target.device == "cpu":
        file = use_in_place(program, file) or file
    if "edge::tree_attention" in program.kernels:
        fuse(file)
    native = program.kernel_policy == NATIVE and target.device == "cpu" and bits
    build = Build(file, sources, kernels=use_kernel(file) if native else ())
    return qnn.finish(build, target) if target.device == "npu" else build
