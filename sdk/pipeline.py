"""From a model to an artifact: capture, quantize, lower, verify on the engine, time, package.

An artifact is only written when the build computes what the model computes, on the engine that will
run it. Of the requested precision and fp32 the faster one that passes is kept; the other stays in
the manifest with the reason.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdk.artifact import Artifact, publish, staging
from sdk.compilers import lower
from sdk.environment import COMPILING, versions
from sdk.errors import EngineUnavailableError, InputError, QuantizationError
from sdk.evidence import (
    Built,
    candidate_of,
    loss_of,
    parity_error,
    provenance_of,
    write_evidence,
)  # fmt: skip
from sdk.extras import require
from sdk.feeds import Feed, as_feeds, smallest, stacked
from sdk.localize import engine_divergence, quantization_divergence
from sdk.manifest import FORMAT_VERSION, Candidate, Fidelity, Function, Manifest
from sdk.model import as_function, default_threads
from sdk.parity import FIDELITY, TOLERANCE, ParityReport, Tolerance, compare
from sdk.processor import Processor
from sdk.runtimes import check_runnable, open_session, probe
from sdk.runtimes.session import Session
from sdk.signature import Array, Dim
from sdk.target import Target
from sdk.timing import Latency, interleave

if TYPE_CHECKING:
    from sdk.compilers.program import Program

Run = Callable[[Feed], Mapping[str, Array]]
Progress = Callable[[str, int, int], None]
Metric = Callable[[Callable[[Any], Any]], float]
WAIVERS = ("parity", "fidelity", "slower")
MAX_CHECKS = 8
EAGER = "torch eager"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How to compile; `sdk.compile` documents each."""

    target: Target
    output: Path
    calibration: Iterable[Any] = ()
    check: Iterable[Any] = ()
    metric: Metric | None = None
    max_drop: float | None = None
    keep_float: Sequence[str] = ()
    processor: Processor | None = None
    waive: Sequence[str] = ()
    overwrite: bool = False
    threads: int = field(default_factory=default_threads)
    provenance: Mapping[str, str] = field(default_factory=dict)
    progress: Progress = lambda _stage, _done, _total: None

    def __post_init__(self) -> None:
        unknown = sorted(set(self.waive) - set(WAIVERS))
        if unknown:
            raise InputError(
                f"The waiver {unknown[0]!r} is not known.",
                expected=f"any of {', '.join(WAIVERS)}",
                got=unknown,
            )
        if (self.metric is None) != (self.max_drop is None):
            raise InputError("metric and max_drop go together.", fix="pass both or neither")


def compile_model(
    model: Any,
    inputs: Any,
    settings: Settings,
    *,
    dynamic: Mapping[str, Mapping[int, Dim]] | None = None,
) -> Artifact:
    """Capture `model` with example `inputs`, then build, gate and package it."""
    for module in ("torch", "onnx", "onnxscript", "torchao"):
        require(module, purpose="Compiling", extra="compile")
    from sdk.compilers.capture import capture, example_feed  # imports torch
    from sdk.compilers.program import Program, torch_threads

    check_target(settings.target)
    threads = torch_threads(settings.threads)
    with staging(settings.output, overwrite=settings.overwrite) as folder, threads:
        settings.progress("capture", 0, 1)
        program = capture(model, inputs, dynamic)
        if settings.processor is not None:
            settings.processor.check(program.signature)
        example = example_feed(model, inputs) or program.signature.zeros()
        given = model if isinstance(model, Program) and model.precision == "int8" else None
        compiler = Compiler(settings, folder, program, example, given)
        baseline = compiler.build(program)
        wanted = compiler.requested(program, baseline)
        kept, candidates = compiler.choose(baseline, wanted)
        settings.progress("package", 0, 1)
        return compiler.package(kept, candidates)


def check_target(target: Target) -> None:
    """Raise EngineUnavailableError unless this machine can compile and check for `target`."""
    check_runnable(target)
    known = probe(target.engine).precisions
    if target.precision not in known:
        raise EngineUnavailableError(
            f"The engine {target.engine!r} does not run {target.precision} on this machine.",
            expected=f"one of {', '.join(known)}",
            got=target.precision,
            fix=f"use {target.with_precision('fp32')}",
        )


class Compiler:
    """One run of the pipeline: its settings, its folder and the inputs to check on."""

    def __init__(
        self,
        settings: Settings,
        folder: Path,
        program: Program,
        example: Feed,
        given: Program | None = None,
    ) -> None:
        self.settings, self.folder, self.given = settings, folder, given
        from sdk.compilers.quantize import check_calibration  # imports torch

        signature = program.signature
        calibration = as_feeds(signature, settings.calibration)
        self.calibration = check_calibration(signature, calibration) if calibration else []
        if settings.target.precision == "int8" and not self.calibration:
            raise QuantizationError(
                "int8 needs calibration data.",
                expected="calibration=[batch, ...] of real inputs",
                got="none",
                fix="pass some hundred real inputs, for example from the training set",
            )
        checks = as_feeds(signature, settings.check) or self.calibration
        for feed in (example, *checks):
            signature.check(feed)
        self.feeds = [example, *checks[:MAX_CHECKS]]
        self.created = 0
        self.eager: Latency | None = None
        self.reference_metric: float | None = None

    def build(self, program: Program) -> Built:
        """Lower `program` and gate it against PyTorch on the engine."""
        target = self.settings.target.with_precision(program.precision)
        self.settings.progress(f"lower to {target}", 0, 1)
        self.created += 1
        build = lower(program, target, self.folder / f"{self.created}-{program.precision}")
        session = open_session(build.file, program.signature, target, threads=self.settings.threads)
        self.settings.progress(f"verify {target} on the engine", 0, len(self.feeds))
        parity = self._parity(program, session, target)
        return Built(program, target, build, session, parity)

    def requested(self, program: Program, baseline: Built) -> Built | None:
        """The build at the requested precision, gated; None where that is fp32."""
        precision = self.settings.target.precision
        if precision == "fp32":
            return None
        if precision == "int8":
            return self._quantized(program, baseline)
        from sdk.compilers.half import to_half  # imports torch

        built = self.build(to_half(program, precision, self.feeds[0]))
        built.fidelity = self._fidelity(baseline, built)
        self._gate_fidelity(built)
        return built

    def choose(self, baseline: Built, wanted: Built | None) -> tuple[Built, tuple[Candidate, ...]]:
        """Time both, and PyTorch, in one run; keep the faster build that passed."""
        self.settings.progress("time", 0, 1)
        builts = {str(built.target): built for built in (baseline, wanted) if built is not None}
        feed = self.feeds[0]
        calls = {name: _caller(built.session.run, feed) for name, built in builts.items()}
        latencies = interleave(calls | {EAGER: _caller(baseline.program.reference, feed)})
        self.eager = latencies.pop(EAGER)
        for name, latency in latencies.items():
            builts[name].latency = latency
        kept, reason = self._decide(baseline, wanted)
        candidates = tuple(
            candidate_of(built, baseline, kept=built is kept, reason=reason)
            for built in builts.values()
        )
        return kept, candidates

    def package(self, kept: Built, candidates: tuple[Candidate, ...]) -> Artifact:
        """Write the kept build, golden values and manifest, and rename to the output."""
        root = self.folder / "artifact"
        kept.session.close()
        shutil.move(kept.build.file.parent, root)
        settings = self.settings
        write_evidence(
            root, kept, smallest(self.feeds[0], kept.program.signature), settings.processor
        )
        manifest = self._manifest(kept, candidates)
        return publish(root, manifest, settings.output, overwrite=settings.overwrite)

    def _parity(self, program: Program, session: Session, target: Target) -> ParityReport:
        """Compare with PyTorch on all checked inputs; ParityError names the operator."""
        report = self._compare(session.run, program.reference, TOLERANCE[program.precision])
        if report.ok or "parity" in self.settings.waive:
            return report
        self.settings.progress("find the first diverging operator", 0, 1)
        found = engine_divergence(
            program,
            target,
            smallest(self.feeds[0], program.signature),
            self.folder,
            threads=self.settings.threads,
        )
        raise parity_error(f"{target} does not compute what the model computes", report, found)

    def _compare(self, run: Run, reference: Run, tolerance: Tolerance) -> ParityReport:
        """On the example inputs and on all inputs; the report that is out of bounds, if one is.

        Taken together alone, calibration data of a larger scale than real inputs would drown them.
        """
        got, want = [run(feed) for feed in self.feeds], [reference(feed) for feed in self.feeds]
        whole = compare(stacked(got), stacked(want), tolerance)
        example = compare(got[0], want[0], tolerance)
        return whole if example.ok else example

    def _quantized(self, program: Program, baseline: Built) -> Built:
        """int8; layers that cost the metric too much go back to float, worst first."""
        from sdk.compilers.quantize import quantize, rank_layers  # imports torch

        keep = list(self.settings.keep_float)
        ranked: list[str] | None = None
        while True:
            quantized = self.given
            if quantized is None or quantized.float_layers != tuple(sorted(keep)):
                quantized = quantize(
                    program, self.calibration, keep_float=keep, step=self.settings.progress
                )
            built = self.build(quantized)
            built.fidelity = self._fidelity(baseline, built)
            if self._within_budget(built.fidelity):
                break
            if self.settings.metric is None:
                break
            if ranked is None:
                self.settings.progress("rank layers by sensitivity", 0, 1)
                ranked = [name for name, _ in rank_layers(quantized, self.calibration[0])]
            more = [name for name in ranked if name not in keep][: max(1, len(keep))]
            if len(keep) + len(more) > len(ranked) // 2:
                break
            keep += more
        self._gate_fidelity(built)
        return built

    def _fidelity(self, baseline: Built, built: Built) -> Fidelity:
        """What the precision cost: the caller's metric on both builds, or the output error."""
        self.settings.progress(f"compare {built.target} with fp32", 0, 1)
        tolerance = FIDELITY[built.program.precision]
        report = self._compare(built.session.run, baseline.program.reference, tolerance)
        metric = self.settings.metric
        if metric is None:
            return Fidelity(report.outputs)
        return Fidelity(
            report.outputs,
            metric=getattr(metric, "__name__", type(metric).__name__),
            reference=self._baseline_metric(baseline, metric),
            measured=float(metric(as_function(built.session))),
            max_drop=self.settings.max_drop,
        )

    def _baseline_metric(self, baseline: Built, metric: Metric) -> float:
        if self.reference_metric is None:
            self.reference_metric = float(metric(as_function(baseline.session)))
        return self.reference_metric

    @staticmethod
    def _within_budget(fidelity: Fidelity) -> bool:
        if fidelity.metric is None:
            return all(output.ok for output in fidelity.outputs)
        assert fidelity.reference is not None
        assert fidelity.measured is not None
        return fidelity.reference - fidelity.measured <= (fidelity.max_drop or 0.0)

    def _gate_fidelity(self, built: Built) -> None:
        fidelity = built.fidelity
        assert fidelity is not None
        if self._within_budget(fidelity) or "fidelity" in self.settings.waive:
            return
        precision = built.program.precision
        found = None
        if precision == "int8":
            feed = smallest(self.feeds[0], built.program.signature)
            found = quantization_divergence(built.program, feed, FIDELITY["int8"])
        report = ParityReport(FIDELITY[precision], fidelity.outputs)
        raise parity_error(loss_of(built, fidelity), report, found)

    def _decide(self, baseline: Built, wanted: Built | None) -> tuple[Built, str]:
        """The build to keep and, for the other one, why not."""
        if wanted is None:
            return baseline, "asked for"
        assert baseline.latency is not None
        assert wanted.latency is not None
        fast, slow = wanted.latency.p50, baseline.latency.p50
        figures = f"{fast:.0f} us against {slow:.0f} us (median, one interleaved run)"
        if fast <= slow:
            return wanted, f"{wanted.target.precision} is faster: {figures}"
        if "slower" in self.settings.waive:
            return wanted, f"slower, waived: {figures}"
        return baseline, f"{wanted.target.precision} is slower than fp32: {figures}"

    def _manifest(self, kept: Built, candidates: tuple[Candidate, ...]) -> Manifest:
        settings = self.settings
        return Manifest(
            format_version=FORMAT_VERSION,
            name=settings.output.stem,
            target=str(kept.target),
            requested=str(settings.target),
            functions={"main": Function(kept.program.signature, kept.build.file.name)},
            candidates=candidates,
            check_batches=len(self.feeds),
            threads=settings.threads,
            tools=versions(COMPILING),
            provenance=provenance_of(kept.program, settings.provenance),
            eager=self.eager,
            waivers=tuple(settings.waive),
        )


def _caller(run: Callable[[Feed], object], feed: Feed) -> Callable[[], object]:
    return lambda: run(feed)
