"""One architecture for some targets, in a process of its own: a crash takes nothing else down.

    python -m tests.coverage.child OUTPUT NAME TARGET...

Appends one line of JSON to OUTPUT when a target is begun and one when it is done.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

import sdk
from sdk.compilers.capture import capture
from sdk.compilers.huggingface import resolve
from sdk.compilers.huggingface_inputs import picture
from sdk.compilers.program import Program
from sdk.errors import EdgeError
from sdk.manifest import Candidate
from sdk.signature import Array, Dim, Signature

from .architectures import ARCHITECTURES, Architecture

Feed = dict[str, Array]
DROP = 0.01  # of the cosine of int8 with fp32
CALIBRATION = 8
LIVE = 0.05  # relative rms by which another input must change some output


def main(output: str, name: str, *targets: str) -> None:
    """Build each target and report it."""
    (row,) = [row for row in ARCHITECTURES if row.name == name]
    with Path(output).open("a", buffering=1) as file:

        def emit(**values: Any) -> None:
            file.write(json.dumps(values) + "\n")

        emit(begun="capture")
        try:
            subject = Subject(row)
        except EdgeError as error:
            for target in targets:
                emit(target=target, **_failure(error), seconds=0.0)
            return
        for target in targets:
            emit(begun=target)
            start = time.monotonic()
            values = subject.compile(target)
            emit(target=target, **values, seconds=round(time.monotonic() - start, 1))


class Subject:
    """A captured architecture and inputs of several sizes for it."""

    def __init__(self, row: Architecture) -> None:
        resolved = resolve(row.build(), None, None)
        self.inputs = resolved.inputs
        self.program = capture(resolved.model, resolved.inputs, resolved.dynamic)
        rng = np.random.default_rng(1)
        signature = self.program.signature
        self.checks = [draw(signature, self.inputs, rng, largest=large) for large in (False, True)]
        self.calibration = [draw(signature, self.inputs, rng) for _ in range(CALIBRATION)]
        check_live(self.program, self.checks[-1], rng)

    def compile(self, target: str) -> dict[str, Any]:
        """Through every gate of `sdk.compile`; what a user is told where it fails."""
        options: dict[str, Any] = {}
        if target.split(":")[2] == "int8":
            options = {"calibration": self.calibration, "metric": self._metric(), "max_drop": DROP}
        with tempfile.TemporaryDirectory() as folder:
            try:
                artifact = sdk.compile(
                    self.program,
                    inputs=self.inputs,
                    target=target,
                    output=Path(folder) / "model.edge",
                    check=self.checks,
                    threads=1,
                    progress=lambda *_: None,
                    **options,
                )
            except EdgeError as error:
                return _failure(error)
            (built,) = [c for c in artifact.manifest.candidates if c.target == target]
            return self._success(built)

    def _success(self, built: Candidate) -> dict[str, Any]:
        fidelity = built.fidelity
        measured = None
        if fidelity is not None:
            measured = fidelity.measured
            if fidelity.metric is None:
                measured = max(output.rms for output in fidelity.outputs)
        return {
            "status": "passed",
            "checked_on": built.checked_on,
            "parity": max(output.rms for output in built.parity),
            "fidelity": measured,
            "float_layers": list(built.float_layers),
        }

    def _metric(self) -> Callable[[Callable[[Feed], Mapping[str, Array]]], float]:
        """The lowest cosine of an output with that of PyTorch, over the checked inputs."""
        wanted = [self.program.reference(feed) for feed in self.checks]

        def cosine(predict: Callable[[Feed], Mapping[str, Array]]) -> float:
            return min(
                _cosine(got[name], value)
                for feed, want in zip(self.checks, wanted, strict=True)
                for got in [predict(feed)]
                for name, value in want.items()
                if value.dtype.kind == "f"
            )

        return cosine


def _cosine(a: Array, b: Array) -> float:
    x, y = a.astype(np.float64).ravel(), b.astype(np.float64).ravel()
    return float(x @ y / (np.linalg.norm(x) * np.linalg.norm(y)))


def draw(
    signature: Signature, example: Mapping[str, Array], rng: np.random.Generator, *,
    largest: bool | None = None,
) -> Feed:  # fmt: skip
    """Inputs like the example's; of random sizes, or of the least or largest that are handy."""
    sizes: dict[str, int] = {}
    feed = {}
    for spec in signature.inputs:
        shape = tuple(_size(dim, rng, sizes, largest) for dim in spec.shape)
        feed[spec.name] = _like(spec.name, example[spec.name], shape, rng)
    return feed


def _size(
    dim: int | Dim, rng: np.random.Generator, sizes: dict[str, int], largest: bool | None
) -> int:
    if isinstance(dim, int):
        return dim
    low, high = dim.min, min(dim.max, 2 * (dim.opt or dim.min) + 1)
    size = int(rng.integers(low, high + 1)) if largest is None else high if largest else low
    return sizes.setdefault(dim.name, size)


def _like(name: str, value: Array, shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    if value.ndim == 4:
        return picture(rng, shape)
    if value.dtype.kind == "f":
        return rng.standard_normal(shape).astype(value.dtype)
    if name.endswith("mask"):
        mask = np.ones(shape, value.dtype)
        for row, length in zip(mask, rng.integers(1, shape[-1] + 1, shape[0]), strict=True):
            row[length:] = 0
        return mask
    return rng.choice(np.unique(value), shape).astype(value.dtype)


def check_live(program: Program, feed: Feed, rng: np.random.Generator) -> None:
    """Each input must matter, or a build that ignores it would pass."""
    before = program.reference(feed)
    for name, value in feed.items():
        if name.endswith("mask"):
            continue
        after = program.reference({**feed, name: _like(name, value, value.shape, rng)})
        change = max(
            float(np.linalg.norm(after[k] - v) / (np.linalg.norm(v) or 1.0))
            if after[k].shape == v.shape
            else 1.0
            for k, v in before.items()
            if v.dtype.kind == "f"
        )
        if change < LIVE:
            raise AssertionError(f"{name} hardly matters: the outputs change by {change:.2g}")


def _failure(error: EdgeError) -> dict[str, Any]:
    return {"status": "failed", "error": type(error).__name__, "message": str(error)}


if __name__ == "__main__":
    main(*sys.argv[1:])
