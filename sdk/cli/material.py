"""What compiling verbs make of their options: example inputs, calibration batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sdk.cli import inputs
from sdk.cli.models import EXAMPLE_INPUTS, Source
from sdk.cli.output import say
from sdk.errors import InputError


def example_inputs(
    source: Source, file: Path | None, shapes: list[str], rows: inputs.Arrays | None
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


def batches_of(
    rows: inputs.Arrays | None, example: Any, dims: inputs.Dynamic
) -> list[inputs.Arrays]:
    """The calibration rows in batches as large as the model takes."""
    if rows is None:
        return []
    rows_each = inputs.batch_size(example, dims)
    made, left_out = inputs.batches(rows, rows_each)
    note = f"; {left_out} at the end do not fill one and are left out" if left_out else ""
    say(f"note: calibration with {len(made)} batches of {rows_each} rows{note}")
    return made
