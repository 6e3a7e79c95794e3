"""Compile for OpenVINO: an ONNX file, which OpenVINO reads itself on the device.

Its own XML format is not used: for a quantized MobileNetV3-small the XML text alone is as large as
three quarters of the weights (1.15 MB for 1.59 MB), which would undo the gain of int8 in size. Only
2-bit weights, which OpenVINO reads from no ONNX file, come in it.

So the NPU's file can be written on any machine; the NPU's compiler sees it when it is loaded.
"""

from __future__ import annotations

from pathlib import Path

from sdk.compilers.fixed import check_shapes
from sdk.compilers.onnx_biases import split_biases
from sdk.compilers.onnx_file import write_onnx
from sdk.compilers.onnx_gates import fold_gates
from sdk.compilers.onnx_proxy import OnnxProxy
from sdk.compilers.program import Build, Program
from sdk.compilers.weight_only_openvino import use_two_bits
from sdk.target import Target


def compile_program(program: Program, target: Target, folder: Path) -> Build:
    """Write `model.onnx`. ONNX has no bf16 convolution: there OpenVINO casts the fp32 file.

    For int2, `model.xml` and `model.bin` where they are smaller.
    """
    check_shapes(program.signature, target)
    if program.precision == "bf16" and program.base is not None:
        program = program.base
    file = folder / "model.onnx"
    sources = write_onnx(program, file)
    if program.precision == "int8" and target.device == "cpu":
        fold_gates(file)
        split_biases(file, sources)
    if program.precision == "int2":
        file = use_two_bits(file)
    return Build(file, sources)


def open_check(build: Build, program: Program, target: Target, *, threads: int) -> OnnxProxy:
    """ONNX Runtime on the same file: the stand-in where no NPU is."""
    return OnnxProxy(build.file.read_bytes(), program.signature, target, threads)
