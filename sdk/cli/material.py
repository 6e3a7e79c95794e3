"""What compiling verbs make of their options: example inputs, calibration batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypedDict

from sdk.cli import inputs, models
from sdk.cli.inputs import Arrays, Dynamic
from sdk.cli.models import EXAMPLE_INPUTS, Source
from sdk.cli.output import say
from sdk.errors import InputError
from sdk.processor import Processor


class Material(TypedDict):
    """What is compiled, under the names that `sdk.compile` and `sdk.tune` give it."""

    model: Any
    inputs: Any
    dynamic: Dynamic | None
    calibration: list[Arrays]
    processor: Processor | None
    provenance: dict[str, str] | None


def gather(
    model: str,
    *,
    example: Path | None,
    shape: list[str] | None,
    dynamic: list[str] | None,
    calibration: Path | None,
    processor: Path | None,
    labels: Path | None,
) -> Material:
    """Read what the options of a verb name."""
    source = models.find(model)
    dims = inputs.parse_dynamic(dynamic or ())
    declared = inputs.load_processor(processor, labels)
    rows = inputs.calibration_rows(calibration, declared) if calibration else None
    chosen = example_inputs(source, example, shape or [], rows)
    return Material(
        model=source.model,
        inputs=chosen,
        dynamic=dims or None,
        calibration=batches_of(rows, chosen, dims),
        processor=declared,
        provenance={"inputs": "random (--shape)"} if shape else None,
    )


def example_inputs(
    source: Source, file: Path | None, shapes: list[str], rows: Arrays | None
) -> Any:
    """The example inputs that a verb was given, or those that it can make."""
    if file is not None and shapes:
        raise InputError("--inputs and --shape exclude each other.", fix="leave one out")
    if file is not None:
        return inputs.load_arrays(file)
    if shapes:
        say("note: --shape gives random inputs: parity is checked on them, not on real inputs")
        return inputs.random_inputs(shapes)
    if source.example is not None:
        return source.example()
    if rows is not None:
        return inputs.cut(rows, 0, 1)
    if source.is_folder:
        say("note: random inputs are made for the model's task: parity is checked on them")
        return None
    raise InputError(
        "There are no example inputs.",
        expected="--inputs file.npz, or --shape name=1x3x224x224 for random ones",
        fix=f"add one, or define {EXAMPLE_INPUTS}() in the model's module",
    )


def batches_of(rows: Arrays | None, example: Any, dims: Dynamic) -> list[Arrays]:
    """The calibration rows in batches as large as the model takes."""
    if rows is None:
        return []
    rows_each = inputs.batch_size(example, dims)
    made, left_out = inputs.batches(rows, rows_each)
    note = f"; {left_out} at the end do not fill one and are left out" if left_out else ""
    say(f"note: calibration with {len(made)} batches of {rows_each} rows{note}")
    return made
