"""One candidate: convert the program to a precision, lower it, and gate it.

*Parity*: the build against its own program in PyTorch, on the engine or what stands in for it.
*Fidelity*: a lower precision against fp32, by the caller's metric or the error of the outputs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdk.artifact import pack_golden
from sdk.checking import open_build
from sdk.compilers import lower
from sdk.errors import EngineUnavailableError, InputError, QuantizationError
from sdk.evidence import Built, Facts, loss_of, parity_error
from sdk.feeds import Feed, as_feeds, smallest, stacked
from sdk.greedy import gate_greedy
from sdk.language import Language
from sdk.localize import engine_divergence, quantization_divergence
from sdk.manifest import Fidelity, Greedy
from sdk.model import as_checked, as_function, default_threads
from sdk.parity import FIDELITY, TOLERANCE, ParityReport, Tolerance, compare
from sdk.placement import check_policy
from sdk.processor import Processor
from sdk.runtimes import support_of
from sdk.runtimes.session import Session
from sdk.signature import Array
from sdk.target import AUTO, STATIC, Target

if TYPE_CHECKING:
    from sdk.compilers.program import Program

Run = Callable[[Feed], Mapping[str, Array]]
Metric = Callable[[Callable[[Any], Any]], float]
WAIVERS = ("parity", "fidelity", "slower")
MAX_CHECKS = 8


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How to compile; `sdk.compile` documents each."""

    target: Target
    output: Path
    task: str | None = None
    features: bool = False
    layers: tuple[int, int] | None = None
    width: int | None = None
    context: int | None = None
    attention: str = "engine"
    calibration: Iterable[Any] = ()
    check: Iterable[Any] = ()
    metric: Metric | None = None
    max_drop: float | None = None
    metric_key: str | None = None
    max_latency_us: float | None = None
    max_bytes: int | None = None
    keep_float: Sequence[str] = ()
    group_size: int | None = None
    method: str = "rtn"
    processor: Processor | None = None
    function: str = "main"
    files: Mapping[str, bytes] = field(default_factory=dict)
    language: Language | None = None
    more: Mapping[str, Any] = field(default_factory=dict)
    """Further functions of the artifact: modules with their inputs, by name."""
    kernels: str = "auto"
    waive: Sequence[str] = ()
    fallback: str = "warn"
    overwrite: bool = False
    threads: int = field(default_factory=default_threads)
    provenance: Mapping[str, str] = field(default_factory=dict)
    progress: Callable[[str, int, int], None] = lambda _stage, _done, _total: None

    def __post_init__(self) -> None:
        unknown = sorted(set(self.waive) - set(WAIVERS))
        if unknown:
            raise InputError(
                f"The waiver {unknown[0]!r} is not known.",
                expected=f"any of {', '.join(WAIVERS)}",
                got=unknown,
            )
        check_policy(self.fallback)
        if (self.metric is None) != (self.max_drop is None):
            raise InputError("metric and max_drop go together.", fix="pass both or neither")
        if self.max_drop is not None and not 0 <= self.max_drop < math.inf:
            raise InputError("max_drop is not usable.", expected="0 or more", got=self.max_drop)
        self._check_budgets()

    def _check_budgets(self) -> None:
        for name in ("max_latency_us", "max_bytes"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise InputError(f"{name} is not usable.", expected="more than 0", got=value)
            if value is not None and self.target.precision != AUTO:
                raise InputError(
                    f"{name} is a budget of the search among precisions.",
                    got=str(self.target),
                    fix=f"use {self.target.with_precision(AUTO)}",
                )


def check_target(target: Target) -> str:
    """What a compile here checks `target` on; EngineUnavailableError where it cannot compile."""
    support = support_of(target)
    if not support.compile:
        raise EngineUnavailableError(
            f"This machine cannot compile for {target}.", got=support.reason, fix=support.fix
        )
    if target.precision not in (*support.precisions, AUTO):
        near = target.with_precision(support.precisions[0])
        raise EngineUnavailableError(
            f"The engine {target.engine!r} does not run {target.precision} on {target.device!r}.",
            expected=f"one of {', '.join(support.precisions)}",
            got=target.precision,
            fix=f"use {near}",
        )
    return support.checked_on


class Builder:
    """Makes and gates builds of one model: its settings, its folder and the inputs to check on."""

    def __init__(
        self,
        settings: Settings,
        folder: Path,
        program: Program,
        example: Feed,
        given: Program | None = None,
    ) -> None:
        self.settings, self.folder, self.program, self.given = settings, folder, program, given
        from sdk.compilers.drawing import check_repeatable  # imports torch
        from sdk.compilers.quantize import check_calibration

        signature = program.signature
        calibration = as_feeds(signature, settings.calibration)
        self.calibration = check_calibration(signature, calibration) if calibration else []
        checks = as_feeds(signature, settings.check) or self.calibration
        for feed in (example, *checks):
            signature.check(feed)
        check_repeatable(program, example)
        self.feeds = [example, *checks[:MAX_CHECKS]]
        self.created = 0
        self.locating = True
        self._reference_metric: float | None = None

    def build(self, program: Program) -> Built:
        """Lower `program` and gate it against PyTorch on the engine or its stand-in."""
        settings = self.settings
        target = settings.target.with_precision(program.precision)
        checked_on = check_target(target)
        settings.progress(f"lower to {target}", 0, 1)
        self.created += 1
        build = lower(program, target, self.folder / f"{self.created}-{program.precision}")
        session = open_build(build, program, target, threads=settings.threads)
        where = "on the engine" if checked_on == "engine" else f"on a stand-in ({checked_on})"
        settings.progress(f"verify {target} {where}", 0, len(self.feeds))
        parity = self._parity(program, session, target)
        facts = Facts(
            sha256=program.digest(),
            float_layers=program.float_layers,
            settings=dict(program.settings),
            golden=self._golden(program),
            greedy=self._greedy(session, target, checked_on),
        )
        return Built(target, build, session, parity, checked_on, facts, program)

    def _greedy(self, session: Session, target: Target, checked_on: str) -> Greedy | None:
        """How far a language model generates what transformers does; ParityError for fp32."""
        language = self.settings.language
        if language is None or checked_on != "engine" or self.settings.more:
            return None  # with more functions it takes all of them: the pipeline checks it
        self.settings.progress(f"generate on {target}", 0, 1)
        strict = target.precision == "fp32" and "parity" not in self.settings.waive
        return gate_greedy(session, language.continuation, strict=strict)

    def _golden(self, program: Program) -> bytes:
        feed = smallest(self.feeds[0], program.signature)
        return pack_golden([(feed, program.reference(feed))])

    def convert(self, precision: str, *, keep_float: Sequence[str] = ()) -> Program:
        """The fp32 program at another precision."""
        given = self.given
        if (
            given is not None
            and given.precision == precision
            and given.float_layers == tuple(sorted(keep_float))
        ):
            return given
        if precision in STATIC and not self.calibration:
            raise QuantizationError(
                f"{precision} needs calibration data.",
                expected="calibration=[batch, ...] of real inputs",
                got="none",
                fix="pass some hundred real inputs, for example from the training set",
            )
        from sdk.compilers.precision import to_precision  # imports torch

        return to_precision(
            self.program,
            self.settings.target.with_precision(precision),
            example=self.feeds[0],
            calibration=self.calibration,
            keep_float=keep_float,
            group_size=self.settings.group_size,
            method=self.settings.method,
            step=self.settings.progress,
        )

    def made(self, precision: str, *, keep_float: Sequence[str] = ()) -> Built:
        """The build at `precision`, with the error of its outputs against fp32."""
        if precision == "fp32":
            return self.build(self.program)
        built = self.build(self.convert(precision, keep_float=keep_float))
        self.settings.progress(f"compare {built.target} with fp32", 0, 1)
        report = self._compare(built.session.run, self.program.reference, FIDELITY[precision])
        answers = report.outputs
        if self.settings.language is not None:  # keys and values only serve the next logits
            answers = tuple(output for output in answers if output.name == "logits")
        built.fidelity = Fidelity(answers)
        return built

    def measured(
        self, precision: str, baseline: Built | None, *, keep_float: Sequence[str] = ()
    ) -> Built:
        """`made`, and what it cost by the caller's metric, where there is one."""
        built = self.made(precision, keep_float=keep_float)
        metric = self.settings.metric
        if metric is not None and built.fidelity is not None:
            self.settings.progress(f"metric of {built.target}", 0, 1)
            built.fidelity = replace(
                built.fidelity,
                metric=getattr(metric, "__name__", type(metric).__name__),
                reference=self._metric_of_fp32(baseline),
                measured=self.metric_of(built),
                max_drop=self.settings.max_drop,
            )
        return built

    def metric_of(self, built: Built) -> float:
        """The caller's metric of a build; InputError where it is not a finite number."""
        return self._metric(as_function(built.session), str(built.target))

    def layer_costs(self, precision: str) -> list[tuple[str, float]]:
        """What quantizing each layer alone costs the outputs, worst first."""
        from sdk.compilers.precision import layer_costs  # imports torch

        target = self.settings.target.with_precision(precision)
        return layer_costs(self.program, target, self.calibration, self.settings.progress)

    @staticmethod
    def within_budget(built: Built) -> bool:
        """Whether the metric's drop, or without one each output's error, is in bounds."""
        fidelity = built.fidelity
        if fidelity is None:
            return True
        if fidelity.metric is None:
            return all(output.ok for output in fidelity.outputs)
        assert fidelity.reference is not None
        assert fidelity.measured is not None
        return fidelity.reference - fidelity.measured <= (fidelity.max_drop or 0.0)

    def gate_fidelity(self, built: Built) -> None:
        """ParityError, with the operator where the loss begins, unless within the budget."""
        fidelity = built.fidelity
        if fidelity is None or self.within_budget(built) or "fidelity" in self.settings.waive:
            return
        precision = built.target.precision
        found = None
        if precision in STATIC and built.program is not None:
            feed = smallest(self.feeds[0], self.program.signature)
            found = quantization_divergence(built.program, feed, FIDELITY[precision])
        report = ParityReport(FIDELITY[precision], fidelity.outputs)
        raise parity_error(loss_of(built, fidelity), report, found)

    def _parity(self, program: Program, session: Session, target: Target) -> ParityReport:
        """Compare with PyTorch on all checked inputs; ParityError names the operator."""
        report = self._compare(session.run, program.reference, TOLERANCE[program.precision])
        if report.ok or "parity" in self.settings.waive:
            return report
        found = None
        if self.locating:
            self.settings.progress("find the first diverging operator", 0, 1)
            feed = smallest(self.feeds[0], program.signature)
            threads = self.settings.threads
            found = engine_divergence(program, target, feed, self.folder, threads=threads)
        session.close()
        raise parity_error(f"{target} does not compute what the model computes", report, found)

    @contextmanager
    def mixing(self) -> Iterator[None]:
        """Builds that diverge are followed by others: where each does is not looked for."""
        self.locating = False
        try:
            yield
        finally:
            self.locating = True

    def _compare(self, run: Run, reference: Run, tolerance: Tolerance) -> ParityReport:
        """On the example inputs and on all inputs; the report that is out of bounds, if one is.

        Taken together alone, calibration data of a larger scale than real inputs would drown them.
        """
        got, want = [run(feed) for feed in self.feeds], [reference(feed) for feed in self.feeds]
        whole = compare(stacked(got), stacked(want), tolerance)
        example = compare(got[0], want[0], tolerance)
        return whole if example.ok else example

    def _metric_of_fp32(self, baseline: Built | None) -> float:
        """On the fp32 build, or on PyTorch where the device has none."""
        if self._reference_metric is None:
            if baseline is not None:
                self._reference_metric = self.metric_of(baseline)
            else:
                reference = self.program.reference
                fp32 = as_checked(self.program.signature, lambda feed, _: reference(feed))
                self._reference_metric = self._metric(fp32, "fp32 in PyTorch")
        return self._reference_metric

    def _metric(self, predict: Callable[..., Any], what: str) -> float:
        metric = self.settings.metric
        assert metric is not None
        value = metric(predict)
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = math.nan
        if not math.isfinite(number):
            raise InputError(
                f"The metric is not a finite number for {what}.",
                expected="metric(predict) -> float, higher is better",
                got=repr(value)[:80],
                fix="call the metric yourself, with a function that returns the model's outputs",
            )
        return number
