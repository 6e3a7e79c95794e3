"""A trained classifier to gated artifacts, one for each engine, and the figures of every build."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

import sdk
from sdk.artifact import MANIFEST, Artifact, publish, staging
from sdk.compilers.capture import capture
from sdk.compilers.quantize import quantize
from sdk.errors import ParityError
from sdk.manifest import Candidate, Manifest
from sdk.processor import Processor
from sdk.progress import Report
from sdk.recipes.training.evaluate import accuracy, predicted
from sdk.signature import Array
from sdk.target import Target

BATCH = 64
Labelled = tuple[Array, Array]


@dataclass(frozen=True)
class Exported:
    """The fastest artifact, all of them by the target that was asked for, and a row per build."""

    best: Artifact
    artifacts: dict[str, Artifact]
    rows: list[dict[str, Any]]
    refused: dict[str, str]
    """Targets whose build did not pass its gates, and why; that engine got fp32 instead."""


class TopOne:
    """Top-1 accuracy on the validation images, which is all that the gate of quantization sees.

    The test images are scored beside it, for the report.
    """

    __name__ = "top1"

    def __init__(self, validation: Labelled, test: Labelled) -> None:
        self.validation, self.test = validation, test
        self.test_accuracies: list[float] = []

    def __call__(self, predict: Callable[[Array], Array]) -> float:
        scored = [
            accuracy(predicted(predict, inputs, batch=BATCH), labels)
            for inputs, labels in (self.validation, self.test)
        ]
        self.test_accuracies.append(scored[1])
        return scored[0]


def export(
    student: nn.Module,
    output: Path,
    *,
    artifacts: Path,
    processor: Processor,
    calibration: Array,
    validation: Labelled,
    test: Labelled,
    engines: Sequence[str],
    precision: str,
    max_drop: float,
    overwrite: bool,
    progress: Report,
) -> Exported:
    """Compile `student` for each engine into `artifacts`, and copy the fastest to `output`.

    calibration and the images of validation and test are float32 N x 3 x H x W.
    """
    example = {processor.input: calibration[:1]}
    batches = list(_batches(calibration))
    progress("capture, and quantize once for all engines", 0, 1)
    program = capture(student, example, {processor.input: {0: sdk.Dim("batch", 1, 1, BATCH)}})
    if precision == "int8":
        program = quantize(program, [{processor.input: batch} for batch in batches], step=progress)
    made: dict[str, Artifact] = {}
    rows: list[dict[str, Any]] = []
    refused: dict[str, str] = {}
    for engine in engines or present_engines():
        target = Target(engine, precision=precision)
        metric = TopOne(validation, test)
        build = partial(
            sdk.compile,
            program,
            inputs=example,
            output=artifacts / f"{engine}.edge",
            calibration=batches,
            check=[validation[0][:BATCH]],
            metric=metric,
            max_drop=max_drop,
            processor=processor,
            overwrite=True,
            progress=prefixed(engine, progress),
        )
        try:
            artifact = build(target=target)
        except ParityError as error:
            if precision == "fp32":
                raise
            refused[str(target)] = str(error)
            target = target.with_precision("fp32")
            artifact = build(target=target)
        made[str(target)] = artifact
        rows += _rows(artifact.manifest, metric.test_accuracies)
    best = max(made.values(), key=lambda artifact: _eager_speedup(artifact.manifest))
    return Exported(copy(best, output, overwrite=overwrite), made, rows, refused)


def prefixed(engine: str, progress: Report) -> Report:
    """The report with the engine before what is done."""
    return lambda what, done, total: progress(f"{engine}: {what}", done, total)


def present_engines() -> list[str]:
    """Engines that can compile and run on this machine."""
    return [name for name, found in sdk.engines().items() if found.compile and found.run]


def _batches(inputs: Array) -> Iterator[Array]:
    return (inputs[start : start + BATCH] for start in range(0, len(inputs), BATCH))


def _rows(manifest: Manifest, test_accuracies: list[float]) -> list[dict[str, Any]]:
    """One row per build; the first scored build is fp32, the last one is the one in question."""
    scores = [test_accuracies[0], test_accuracies[-1]] if test_accuracies else [None, None]
    return [
        _row(candidate, manifest, score)
        for candidate, score in zip(manifest.candidates, scores, strict=False)
    ]


def _row(candidate: Candidate, manifest: Manifest, score: float | None) -> dict[str, Any]:
    target = Target.parse(candidate.target)
    baseline = manifest.candidates[0]
    assert candidate.latency is not None
    assert manifest.eager is not None
    return {
        "engine": target.engine,
        "precision": target.precision,
        "bytes": candidate.bytes,
        "size_ratio": candidate.bytes / baseline.bytes,
        "p50_us": candidate.latency.p50,
        "speedup_over_fp32": candidate.speedup,
        "speedup_over_eager": manifest.eager.p50 / candidate.latency.p50,
        "test_accuracy": score,
        "parity_rms": max(output.rms for output in candidate.parity),
        "float_layers": list(candidate.float_layers),
        "kept": candidate.kept,
        "reason": candidate.reason,
    }


def _eager_speedup(manifest: Manifest) -> float:
    """Engines are compared through PyTorch, which every compile times in its own run."""
    assert manifest.eager is not None
    assert manifest.kept.latency is not None
    return manifest.eager.p50 / manifest.kept.latency.p50


def copy(artifact: Artifact, output: Path, *, overwrite: bool) -> Artifact:
    """The artifact again, at `output` and under its name."""
    with staging(output, overwrite=overwrite) as folder:
        root = folder / "artifact"
        shutil.copytree(artifact.path, root, ignore=shutil.ignore_patterns(MANIFEST))
        manifest = replace(artifact.manifest, name=output.stem)
        return publish(root, manifest, output, overwrite=overwrite)
