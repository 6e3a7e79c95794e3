"""Programs and engine files of the cases, made once for all the rows that use them."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from cases import Case

from sdk.target import FLOATS, Target

if TYPE_CHECKING:
    from sdk.compilers.program import Build, Program

CALIBRATION = range(100, 164)


def program_of(case: Case, target: Target) -> Program:
    """The case at the target's precision; targets that run the same numbers share it.

    TensorRT and NPUs take Q/DQ pairs of their own.
    """
    own = target.precision not in FLOATS and (target.engine == "tensorrt" or target.device == "npu")
    return _program(case, target if own else Target("torch", precision=target.precision))


@lru_cache(maxsize=16)
def _program(case: Case, target: Target) -> Program:
    from sdk.compilers.capture import capture, example_feed
    from sdk.compilers.precision import to_precision

    model = case.model()
    if target.precision == "fp32":
        return capture(model, case.inputs(0), case.dynamic)
    return to_precision(
        program_of(case, target.with_precision("fp32")),
        target,
        example=example_feed(model, case.inputs(0)) or {},
        calibration=[example_feed(model, case.inputs(i)) or {} for i in CALIBRATION],
    )


class Lowering:
    """Lowers cases into a folder. Engines that read the same format share its translation."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, case: Case, target: Target) -> tuple[Program, Build]:
        """The program and its engine files."""
        from sdk.compilers import lower

        program = program_of(case, target)
        return program, lower(program, target, self.folder / f"{case}-{target}".replace(":", "-"))
