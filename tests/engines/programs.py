"""Programs and engine files of the cases, made once for all the rows that use them."""

from __future__ import annotations

import shutil
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from cases import Case

from sdk.target import Target

if TYPE_CHECKING:
    from sdk.compilers.program import Build, Program, SourceLine

CALIBRATION = range(100, 164)


@lru_cache(maxsize=8)
def program_of(case: Case, precision: str) -> Program:
    """The case at a precision; engines share it, as they do within one compile."""
    from sdk.compilers.capture import capture, example_feed
    from sdk.compilers.half import to_half
    from sdk.compilers.quantize import quantize

    model = case.model()
    if precision == "fp32":
        return capture(model, case.inputs(0), case.dynamic)
    base = program_of(case, "fp32")
    if precision == "int8":
        return quantize(base, [example_feed(model, case.inputs(i)) or {} for i in CALIBRATION])
    return to_half(base, precision, example_feed(model, case.inputs(0)) or {})


class Lowering:
    """Lowers cases. One translation to ONNX serves all engines that read ONNX."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._translated = lru_cache(maxsize=4)(self._translate)

    def __call__(self, case: Case, target: Target) -> tuple[Program, Build]:
        """The program and its engine files."""
        from sdk.compilers import lower, onnxruntime, openvino

        program = program_of(case, target.precision)
        with pytest.MonkeyPatch.context() as patch:
            for module in (onnxruntime, openvino):
                patch.setattr(module, "write_onnx", self._copy)
            folder = self.folder / f"{case}-{str(target).replace(':', '-')}"
            return program, lower(program, target, folder)

    def _translate(self, program: Program) -> tuple[Path, dict[str, SourceLine]]:
        from sdk.compilers.onnx_file import write_onnx

        file = self.folder / f"{program.digest()}.onnx"
        return file, write_onnx(program, file)

    def _copy(self, program: Program, file: Path) -> dict[str, SourceLine]:
        source, sources = self._translated(program)
        shutil.copyfile(source, file)
        return sources
