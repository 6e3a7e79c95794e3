"""`edge compile`: a model to an artifact that passed its gates."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

from rich.console import RenderableType
from typer import Argument, Option

import sdk
from sdk.artifact import Artifact
from sdk.cli import candidates, inputs, models
from sdk.cli.options import Overwrite, Threads
from sdk.cli.output import Answer, say, size, stages
from sdk.errors import InputError


def compile(
    model: Annotated[
        str,
        Argument(
            help="package.module:callable that returns an nn.Module, an .onnx file, or a Hugging "
            "Face model folder."
        ),
    ],
    *,
    target: Annotated[str, Option("--target", "-t", help="engine[:device[:precision]].")],
    output: Annotated[Path, Option("--output", "-o", help="The artifact; ends in .edge.")],
    example: Annotated[
        Path | None,
        Option("--inputs", help="Real example inputs: .npz or .safetensors by name, or .npy."),
    ] = None,
    shape: Annotated[
        list[str] | None,
        Option(help="Random example input, name=1x3x224x224[:dtype]. Repeat for each input."),
    ] = None,
    task: Annotated[
        str | None, Option(help="Task of a Hugging Face folder, such as text-classification.")
    ] = None,
    dynamic: Annotated[
        list[str] | None,
        Option(help="A size that varies, input:axis=name[:min:opt:max]. May be repeated."),
    ] = None,
    calibration: Annotated[
        Path | None,
        Option(help="Real inputs along axis 0 (.npz, .npy, .safetensors), or a folder of images."),
    ] = None,
    processor: Annotated[
        Path | None, Option(help="JSON of sdk.Processor: how raw input becomes the model's.")
    ] = None,
    labels: Annotated[
        Path | None, Option(help="Text file with one class label on each line.")
    ] = None,
    keep_float: Annotated[
        list[str] | None, Option(help="Layer to leave in float. May be repeated.")
    ] = None,
    group_size: Annotated[
        int | None, Option(help="Weights that share a scale, for int4 and int2; default: 32.")
    ] = None,
    method: Annotated[
        str,
        Option(help="Rounding of weight-only precisions: rtn, hqq, awq, gptq, scale_estimation."),
    ] = "rtn",
    fallback: Annotated[
        str, Option(help="Operators that the device does not run: forbid, warn or allow.")
    ] = "warn",
    waive: Annotated[
        list[str] | None,
        Option(help="Gate to pass over and record: parity, fidelity or slower. May be repeated."),
    ] = None,
    overwrite: Overwrite = False,
    threads: Threads = None,
) -> Answer:
    """Compile MODEL for a target, check it on the engine, time it, and write the artifact.

    Example inputs come from --inputs, else --shape, else example_inputs() of MODEL's module, else
    the first row of --calibration, else, for a Hugging Face folder, they are made for its task.
    Parity with PyTorch is checked on them and on the calibration.

    Examples:

    ```console
    $ edge compile nets:small --inputs x.npz -t onnxruntime -o small.edge
    $ edge compile nets:small --calibration x.npz -t openvino:cpu:int8 -o s.edge
    $ edge compile net.onnx --shape input=1x3x224x224 -t openvino -o net.edge
    $ edge compile net.onnx --inputs x.npz --dynamic x:0=batch:1:1:16 -t torch -o t.edge
    $ edge compile ./bert-folder --task text-classification -t onnxruntime -o bert.edge
    $ edge compile nets:lm --inputs x.npz -t openvino:cpu:int4 --group-size 64 -o lm.edge
    ```
    """
    source = models.find(model)
    dims = inputs.parse_dynamic(dynamic or ())
    declared = inputs.load_processor(processor, labels)
    rows = inputs.calibration_rows(calibration, declared) if calibration else None
    chosen = _example(source, example, shape or [], rows)
    artifact = sdk.compile(
        source.model,
        inputs=chosen,
        target=target,
        output=output,
        task=task,
        dynamic=dims or None,
        calibration=[] if rows is None else _batches(rows, inputs.batch_size(chosen, dims)),
        keep_float=keep_float or (),
        group_size=group_size,
        method=method,
        fallback=fallback,
        processor=declared,
        waive=waive or (),
        overwrite=overwrite,
        threads=threads,
        provenance={"inputs": "random (--shape)"} if shape else None,
        progress=stages(),
    )
    return Answer(document=_document(artifact), view=lambda: _view(artifact))


def _example(
    source: models.Source, file: Path | None, shapes: list[str], rows: inputs.Arrays | None
) -> Any:
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
        fix=f"add one, or define {models.EXAMPLE_INPUTS}() in the model's module",
    )


def _batches(rows: inputs.Arrays, rows_each: int) -> list[inputs.Arrays]:
    made, left_out = inputs.batches(rows, rows_each)
    note = f"; {left_out} at the end do not fill one and are left out" if left_out else ""
    say(f"note: calibration with {len(made)} batches of {rows_each} rows{note}")
    return made


def _document(artifact: Artifact) -> dict[str, Any]:
    manifest = artifact.manifest
    return {
        "artifact": str(artifact.path),
        "bytes": artifact.size,
        "target": manifest.target,
        "requested": manifest.requested,
        "eager": manifest.eager,
        "waivers": manifest.waivers,
        "candidates": candidates.rows(manifest),
    }


def _view(artifact: Artifact) -> Iterator[RenderableType]:
    manifest = artifact.manifest
    yield from candidates.evidence(f"Built for {manifest.requested}", [manifest])
    waived = f"; waived: {', '.join(manifest.waivers)}" if manifest.waivers else ""
    yield f"{artifact.path}: {manifest.target}, {size(artifact.size)}{waived}"
