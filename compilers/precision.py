"""From the fp32 program to the program at another precision: the numbers all engines run."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

from sdk.compilers.program import Feed, Program
from sdk.target import FLOATS, STATIC, Target

Step = Callable[[str, int, int], None]


def to_precision(
    program: Program,
    target: Target,
    *,
    example: Feed,
    calibration: Sequence[Feed] = (),
    keep_float: Collection[str] = (),
    group_size: int | None = None,
    method: str = "rtn",
    step: Step | None = None,
) -> Program:
    """`program` at the target's precision.

    `example` is a real input; `calibration` are those that static precisions, and methods that look
    at data, need. `group_size` and `method` are those of weight-only precisions.
    """
    precision = target.precision
    if precision == "fp32":
        return program
    if precision in FLOATS:
        from sdk.compilers.half import to_half

        return to_half(program, precision, example)
    if precision in STATIC:
        from sdk.compilers.quantize import quantize

        return quantize(program, calibration, keep_float=keep_float, step=step, **_static(target))
    if precision.startswith("pal"):
        from sdk.compilers.palettes import palettize

        return palettize(
            program,
            precision,
            group_size=group_size,
            method=method,
            keep_float=keep_float,
            step=step,
        )
    from sdk.compilers.weight_only import compress

    return compress(
        program,
        precision,
        group_size=group_size,
        method=method,
        calibration=calibration,
        keep_float=keep_float,
        step=step,
    )


def layer_costs(
    program: Program, target: Target, calibration: Sequence[Feed], step: Step | None = None
) -> list[tuple[str, float]]:
    """What quantizing each layer alone to the target's static precision costs, worst first."""
    from sdk.compilers import sensitivity
    from sdk.compilers.quantize import observed

    graph = observed(program, calibration, step=step, **_static(target))
    return sensitivity.layer_costs(graph, program.signature, calibration, step)


def _static(target: Target) -> dict[str, Any]:
    """How an engine wants static precisions: options of `quantize`."""
    return {
        "precision": target.precision,
        "everywhere": target.device == "npu" and target.engine != "coreml",
        "symmetric": target.engine == "tensorrt",
    }
