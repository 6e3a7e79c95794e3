"""`edge compile`: a model to an artifact that passed its gates."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

from rich.console import RenderableType
from typer import Option

import sdk
from sdk.artifact import Artifact
from sdk.cli import candidates
from sdk.cli.material import gather
from sdk.cli.options import (
    Calibration,
    Dynamic,
    Example,
    Fallback,
    GroupSize,
    KeepFloat,
    Kernels,
    Labels,
    Method,
    Model,
    Output,
    Overwrite,
    ProcessorFile,
    Shape,
    Task,
    Threads,
    Waive,
)
from sdk.cli.output import Answer, size, stages


def compile(
    model: Model,
    *,
    target: Annotated[
        str, Option("--target", "-t", help="engine[:device[:precision]]; auto: search precisions.")
    ],
    output: Output,
    example: Example = None,
    shape: Shape = None,
    task: Task = None,
    dynamic: Dynamic = None,
    calibration: Calibration = None,
    processor: ProcessorFile = None,
    labels: Labels = None,
    keep_float: KeepFloat = None,
    group_size: GroupSize = None,
    method: Method = "rtn",
    fallback: Fallback = "warn",
    kernels: Kernels = "auto",
    waive: Waive = None,
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
    given = gather(
        model,
        example=example,
        shape=shape,
        dynamic=dynamic,
        calibration=calibration,
        processor=processor,
        labels=labels,
    )
    artifact = sdk.compile(
        **given,
        target=target,
        output=output,
        task=task,
        keep_float=keep_float or (),
        group_size=group_size,
        method=method,
        fallback=fallback,
        kernels=kernels,
        waive=waive or (),
        overwrite=overwrite,
        threads=threads,
        progress=stages(),
    )
    return Answer(document=_document(artifact), view=lambda: _view(artifact))


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
