"""`edge tune`: search the precisions of a device for the best artifact within the budgets."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from rich.console import RenderableType
from typer import Option

import sdk
from sdk.cli import candidates, models
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
from sdk.cli.output import Answer, duration, say, size, stages, table
from sdk.files import check_suffix

if TYPE_CHECKING:
    from sdk.search.result import Search

SHOWN = 10  # layers


def tune(
    model: Model,
    *,
    target: Annotated[str, Option("--target", "-t", help="engine[:device].")],
    output: Output,
    metric: Annotated[
        str | None,
        Option(help="package.module:function, metric(predict) -> float, higher is better."),
    ] = None,
    max_drop: Annotated[
        float | None, Option(help="What the metric may lose against fp32, in its own unit.")
    ] = None,
    metric_key: Annotated[
        str | None, Option(help="Name of the metric and its data, under which values are cached.")
    ] = None,
    max_latency: Annotated[
        float | None, Option(help="Microseconds; the smallest artifact within them is kept.")
    ] = None,
    max_bytes: Annotated[int | None, Option(help="Largest size of the engine files.")] = None,
    report: Annotated[Path | None, Option(help="Report to write: .html or .json.")] = None,
    cache: Annotated[
        Path | None, Option(help="Folder of builds; default: ~/.cache/edge-sdk.")
    ] = None,
    no_cache: Annotated[bool, Option("--no-cache", help="Keep no builds, use none.")] = False,
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
    """Try all precisions that a device has, and mixtures; keep the fastest that passes its gates.

    Without --calibration static int8 is left out. Builds are cached: a search that was interrupted
    goes on where it stood when it is called again.

    Examples:

    ```console
    $ edge tune nets:small --calibration x.npz -t openvino:cpu -o small.edge
    $ edge tune nets:small --calibration x.npz --metric nets:top1 --max-drop 0.01 \\
        -t onnxruntime:cpu -o small.edge --report tune.html
    $ edge tune net.onnx --inputs x.npz --max-latency 2000 -t openvino:cpu -o net.edge
    ```
    """
    if report is not None:
        check_suffix(report, ".html", ".json")
    given = gather(
        model,
        example=example,
        shape=shape,
        dynamic=dynamic,
        calibration=calibration,
        processor=processor,
        labels=labels,
    )
    search = sdk.tune(
        **given,
        target=target,
        output=output,
        task=task,
        metric=None if metric is None else models.find_metric(metric),
        max_drop=max_drop,
        metric_key=metric_key,
        max_latency_us=max_latency,
        max_bytes=max_bytes,
        cache=False if no_cache else cache or True,
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
    if report is not None:
        search.save(report)
        say(f"wrote {report}")
    return Answer(document=search.to_json(), view=lambda: _view(search))


def _view(search: Search) -> Iterator[RenderableType]:
    manifest = search.artifact.manifest
    yield from candidates.evidence(f"Candidates for {manifest.requested}", [manifest])
    front = (
        (c.target, len(c.float_layers) or "", size(c.bytes), duration(c.latency.p50))
        for c in search.front
        if c.latency is not None
    )
    yield table("Pareto front", ("target", ">layers in float", ">size", ">p50"), front)
    layers = [(row.name, f"{row.cost:.3g}", row.precision) for row in search.layers[:SHOWN]]
    if layers:
        yield table("Most sensitive layers", ("layer", ">cost", "kept in"), layers)
    builds = f"{search.built} built, {search.reused} from the cache"
    yield f"{search.artifact.path}: {manifest.target}, {manifest.kept.reason}"
    yield f"{len(search.candidates)} candidates in {search.seconds:.0f} s: {builds}"
