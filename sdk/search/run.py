"""The search among precisions: build and gate each, mix where it helps, time all, keep one."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sdk.building import Settings
from sdk.errors import (
    EngineError,
    InputError,
    ParityError,
    QuantizationError,
    UnsupportedOperatorError,
)
from sdk.evidence import Built, candidate_of, loss_of
from sdk.manifest import Candidate
from sdk.mixing import GIVE_BACK, least_float, open_to_float
from sdk.pipeline import package, prepared, time_builds
from sdk.placement import enforce
from sdk.progress import Report
from sdk.runtimes import support_of
from sdk.search.cache import Cache, default_root
from sdk.search.cached import CachedBuilder
from sdk.search.front import Budget, choose
from sdk.search.layers import Layer, layer_times, slower_than_float
from sdk.search.result import Search
from sdk.search.verdicts import Verdicts, in_one_line
from sdk.signature import Dim
from sdk.target import FLOATS, STATIC, WEIGHT_ONLY, Target

# What one precision may fail with; the search goes on with the others.
REFUSALS = (QuantizationError, UnsupportedOperatorError, ParityError, EngineError)
SECONDS_EACH, RUNS = 4.0, 1000  # of the interleaved run, for each finalist


@dataclass
class Trial:
    """One candidate: a build, or the reason why there is none or why it is out."""

    target: Target
    float_layers: tuple[str, ...]
    built: Built | None = None
    reason: str = ""
    refused: bool = False
    """Whether no mixture can be better: it was not made at all."""


class Progress:
    """Says which candidate of how many is being made, and since when the search runs."""

    def __init__(self, report: Report, total: int) -> None:
        self.report, self.total = report, total
        self.start, self.done, self.label = time.monotonic(), 0, "start"

    @property
    def seconds(self) -> float:
        """Since the search began."""
        return time.monotonic() - self.start

    def next(self, label: str) -> None:
        """Another candidate begins."""
        self.done += 1
        self.total = max(self.total, self.done)
        self.label = f"candidate {self.done} of {self.total}, {label}"

    def __call__(self, what: str, done: int, total: int) -> None:
        minutes, seconds = divmod(int(self.seconds), 60)
        self.report(f"[{minutes}:{seconds:02}] {self.label}: {what}", done, total)


class Tuner:
    """Tries the candidates one after the other; `trials` are all of them, in order."""

    def __init__(self, builder: CachedBuilder) -> None:
        self.builder, self.target = builder, builder.settings.target
        known = (*FLOATS, *STATIC, *WEIGHT_ONLY)
        precisions = support_of(self.target).precisions
        self.precisions = [name for name in known if name in precisions]
        self.progress = Progress(builder.settings.progress, len(self.precisions))
        builder.settings = replace(builder.settings, progress=self.progress)
        self.trials: list[Trial] = []
        self.baseline: Built | None = None
        self.costs: dict[str, list[tuple[str, float]]] = {}
        self.times: dict[str, dict[str, float]] = {}

    @property
    def finalists(self) -> list[Built]:
        """The builds that passed their gates."""
        return [trial.built for trial in self.trials if trial.built and not trial.reason]

    def run(self) -> None:
        """Each precision, and each static one with some layers in float."""
        for precision in self.precisions:
            built = self._try(precision)
            if precision == "fp32":
                self.baseline = built
            elif precision in STATIC and self.builder.calibration:
                self._mix(precision, built)

    def _mix(self, precision: str, built: Built | None) -> None:
        """Layers in float: as many as the budget needs, then those that are faster there."""
        if built is None and self.trials[-1].refused:
            return
        costs = self.costs[precision] = self.builder.layer_costs(precision)
        fixed = self.builder.settings.keep_float
        ranked = open_to_float([layer for layer, _ in costs], fixed)
        if built is None:
            self.progress.total += len(ranked).bit_length() + GIVE_BACK
            with self.builder.mixing():
                built = least_float(ranked, lambda layers: self._try(precision, layers))
            self.progress.total = self.progress.done + self._left(precision)
        if built is not None:
            self._take_slow_layers_to_float(precision, built, ranked)

    def _left(self, precision: str) -> int:
        return len(self.precisions) - 1 - self.precisions.index(precision)

    def _take_slow_layers_to_float(
        self, precision: str, built: Built, ranked: Sequence[str]
    ) -> None:
        if self.baseline is None or built.checked_on != "engine":
            return
        self.progress("profile layers", 0, 1)
        feed = self.builder.feeds[0]
        for name, build in (("fp32", self.baseline), (precision, built)):
            self.times[name] = layer_times(build, feed)
        in_float = set(built.facts.float_layers)
        quantized = [layer for layer in ranked if layer not in in_float]
        slow = slower_than_float(quantized, self.times["fp32"], self.times[precision])
        if slow and len(slow) < len(quantized):
            self.progress.total += 1
            self._try(precision, [layer for layer in ranked if layer in {*in_float, *slow}])

    def _try(self, precision: str, layers: Sequence[str] = ()) -> Built | None:
        """The build if it passes all gates; a trial with the reason either way."""
        keep = tuple(sorted({*layers, *self.builder.settings.keep_float}))
        label = f"{precision} with {len(keep)} layers in float" if keep else precision
        self.progress.next(label)
        trial = Trial(self.target.with_precision(precision), keep if precision in STATIC else ())
        self.trials.append(trial)
        try:
            built = self.builder.measured(precision, self.baseline, keep_float=keep)
        except REFUSALS as error:
            trial.reason, trial.refused = in_one_line(error), not isinstance(error, ParityError)
            return None
        trial.built, trial.reason = built, self._refused(built)
        if not trial.reason:
            return built
        built.session.close()
        return None

    def _refused(self, built: Built) -> str:
        settings = self.builder.settings
        if not self.builder.within_budget(built) and "fidelity" not in settings.waive:
            assert built.fidelity is not None
            if built.fidelity.metric is not None:
                return loss_of(built, built.fidelity)
            return f"{loss_of(built, built.fidelity)}: {_worst(built)}"
        if settings.fallback != "forbid":
            return ""
        try:
            enforce(built.session.placement(), built.target, "forbid")
        except UnsupportedOperatorError as error:
            return in_one_line(error)
        return ""


def search_model(
    model: Any,
    inputs: Any,
    settings: Settings,
    *,
    dynamic: Mapping[str, Mapping[int, Dim]] | None = None,
    cache: bool | str | Path = True,
) -> Search:
    """Capture `model`, try all precisions of the target's device and package the best one."""
    store = _cache(cache)
    start = time.monotonic()
    with prepared(model, inputs, settings, dynamic=dynamic, kind=CachedBuilder) as builder:
        builder.cache = store
        _check_measurable(builder.settings)
        tuner = Tuner(builder)
        try:
            tuner.run()
            return _conclude(tuner, start)
        except KeyboardInterrupt as stop:
            stop.add_note(_what_is_kept(builder))
            raise


def _conclude(tuner: Tuner, start: float) -> Search:
    builder, finalists = tuner.builder, tuner.finalists
    settings = builder.settings
    if not finalists:
        raise _nothing_passed(tuner)
    tuner.progress.label = f"{len(finalists)} finalists"
    tuner.progress("time them in turns", 0, 1)
    seconds = SECONDS_EACH * (len(finalists) + 1)
    eager = time_builds(builder, finalists, runs=RUNS, seconds=seconds)
    budget = Budget(latency_us=settings.max_latency_us, bytes=settings.max_bytes)
    kept = choose(finalists, tuner.baseline, budget)
    verdicts = Verdicts(finalists, tuner.baseline, kept, budget, tuner.times)
    rows = tuple(_row(trial, tuner.baseline, verdicts) for trial in tuner.trials)
    for built in finalists:
        if built is not kept:
            built.session.close()
    return Search(
        artifact=package(builder, kept, rows, eager),
        layers=_layers(tuner, kept),
        seconds=time.monotonic() - start,
        built=builder.built,
        reused=builder.reused,
        cache=None if builder.cache is None else str(builder.cache.root),
        budgets={
            "max_drop": settings.max_drop,
            "max_latency_us": settings.max_latency_us,
            "max_bytes": settings.max_bytes,
        },
    )


def _row(trial: Trial, baseline: Built | None, verdicts: Verdicts) -> Candidate:
    built = trial.built
    if built is not None:
        reason = trial.reason or verdicts.of(built)
        return candidate_of(built, baseline, kept=built is verdicts.kept, reason=reason)
    return Candidate(
        target=str(trial.target),
        kept=False,
        reason=trial.reason,
        bytes=0,
        parity=(),
        float_layers=trial.float_layers,
        checked_on=support_of(trial.target).checked_on,
    )


def _cache(wanted: bool | str | Path) -> Cache | None:
    """The cache at a path, the one at its default place, or none."""
    if wanted is False:
        return None
    return Cache(default_root() if wanted is True else Path(wanted))


def _check_measurable(settings: Settings) -> None:
    support = support_of(settings.target)
    if settings.max_latency_us is not None and support.checked_on != "engine":
        raise InputError(
            "max_latency_us cannot be checked on this machine.",
            got=f"builds for {settings.target.device} are checked on a {support.checked_on}",
            fix="leave it out here, and measure on the device with `edge profile`",
        )


def _nothing_passed(tuner: Tuner) -> ParityError:
    reasons = [f"{trial.target}: {trial.reason}" for trial in tuner.trials]
    return ParityError(
        f"No precision of {tuner.target} passes its gates.",
        got="; ".join(reasons) or "no precision",
        fix="allow more loss (max_drop), check the calibration data, or take another engine",
    )


def _what_is_kept(builder: CachedBuilder) -> str:
    done = builder.built + builder.reused
    if builder.cache is None:
        return "Interrupted; without a cache nothing is kept."
    return (
        f"Interrupted after {done} candidates; finished ones are in {builder.cache.root}. "
        "The same call with the same data takes them up."
    )


def _layers(tuner: Tuner, kept: Built) -> tuple[Layer, ...]:
    """The sensitivity table of the kept static precision, or of the first that was ranked."""
    precision = kept.target.precision
    ranked = precision if precision in tuner.costs else next(iter(tuner.costs), None)
    if ranked is None:
        return ()
    in_float, quantized = (tuner.times.get(name, {}) for name in ("fp32", ranked))
    floats = kept.facts.float_layers
    return tuple(
        Layer(
            name=layer,
            cost=cost,
            precision="fp32" if layer in floats else precision,
            float_us=in_float.get(layer),
            quantized_us=quantized.get(layer),
        )
        for layer, cost in tuner.costs[ranked]
    )


def _worst(built: Built) -> str:
    assert built.fidelity is not None
    return str(max(built.fidelity.outputs, key=lambda output: (not output.ok, output.rms)))
