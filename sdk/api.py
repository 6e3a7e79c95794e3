"""The public functions. Everything heavy is imported when it is called."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdk.artifact import Artifact
from sdk.errors import InputError
from sdk.model import Model, default_threads, load
from sdk.parity import ParityReport
from sdk.processor import Processor
from sdk.signature import Dim
from sdk.target import AUTO, ENGINES, Availability, Target

if TYPE_CHECKING:
    from sdk.profiling import Profile
    from sdk.recipes.base import Recipe
    from sdk.search.result import Search

__all__ = ["compile", "engines", "load", "profile", "recipe", "tune", "verify"]


def compile(
    model: Any,
    *,
    inputs: Any = None,
    target: str | Target,
    output: str | Path,
    precision: str | None = None,
    task: str | None = None,
    features: bool = False,
    layers: tuple[int, int] | None = None,
    attention: str = "engine",
    width: int | None = None,
    context: int | None = None,
    dynamic: Mapping[str, Mapping[int, Dim]] | None = None,
    calibration: Iterable[Any] = (),
    check: Iterable[Any] = (),
    metric: Callable[[Callable[[Any], Any]], float] | None = None,
    max_drop: float | None = None,
    max_latency_us: float | None = None,
    max_bytes: int | None = None,
    keep_float: Sequence[str] = (),
    group_size: int | None = None,
    method: str = "rtn",
    processor: Processor | None = None,
    kernels: str = "auto",
    waive: Sequence[str] = (),
    fallback: str = "warn",
    overwrite: bool = False,
    threads: int | None = None,
    provenance: Mapping[str, str] | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Artifact:
    """Compile `model` for `target` and write the artifact `output`, if it passes its gates.

    model: an nn.Module, a torch.export ExportedProgram, the path of an .onnx file or of a Hugging
        Face model folder, a configuration or model of `transformers`, or a Program of
        sdk.compilers.capture or .quantize, which several targets can share.
    inputs: real example inputs: a tensor, a sequence in forward's order, or a mapping by name. For
        Hugging Face models they may be left out: random ones are made for the model's task, and
        `dynamic` with them.
    target: `engine[:device[:precision[:arch]]]`, for example `openvino:cpu:int8`. The precision
        `auto` searches all that the device has, as `sdk.tune` does.
    output: a path that ends in `.edge`.
    precision: takes the place of the target's, for example `auto`.
    task: for Hugging Face folders and configurations, one of transformers' pipelines, for example
        `text-classification`; default: the class that the configuration names.
    features: let a language model give the hidden states behind its logits as well, which a
        `FeatureDrafter` goes on from.
    layers: only these decoder layers of a language model, from the first to before the second, with
        its norm and output layer behind them. A `SortedDrafter` takes them one after the other;
        those that do not begin at 0 go on from the features of the ones before.
    attention: what a language model attends by: the `engine`'s own operators, or the `kernel`
        `edge::tree_attention`, which reads a long cache faster where the target has it.
    width, context: tokens that a language model reads at once on an NPU, whose shapes are fixed,
        and tokens that its cache holds there; default 8, and 256 or what the model has.
    dynamic: input name -> axis -> `sdk.Dim`, for sizes that vary.
    calibration: batches of real inputs; needed for int8, a16w8 and fp8.
    check: further batches to check on; by default the first calibration batches.
    metric: `metric(predict) -> float`, higher is better, called with a function from arrays to
        arrays for the fp32 build and for the requested one; `max_drop` is what it may lose, in its
        own unit.
        Where int8 loses more, the most sensitive layers go back to float until it does not.
    max_latency_us, max_bytes: budgets of the precision `auto`; see `sdk.tune`.
    keep_float: names of layers that quantization must leave in float.
    group_size: how many weights share a scale, for weight-only int4 and int2; default: 32.
    method: how weight-only precisions round: `rtn` (to nearest), `hqq`, or, with calibration data,
        `awq`, `gptq`, `scale_estimation`.
    processor: what `predict` does to raw input and to the outputs.
    kernels: what becomes of plugin kernels, `torch.ops.edge.*`: `auto` keeps a node where the
        engine has native code for it, `native` also takes kernels for layers of the engine's own
        where they are measured to be faster (weight-only layers for ONNX Runtime), `portable` gives
        the node its body, for an engine that has not the kernel, `decomposed` takes ordinary
        operators everywhere.
    waive: gates to pass over, written into the manifest: `parity`, `fidelity`, `slower`.
    fallback: what to do about operators that the target's device does not run: `forbid`, `warn`,
        `allow`.
    threads: the engine's threads while checking and timing; default: all cores allowed.
    provenance: what else the manifest should say of where this came from.
    progress: called with (what, done, total); default: a line on the terminal.

    Raises CaptureError, UnsupportedOperatorError, QuantizationError, ParityError (naming the first
    diverging operator), EngineUnavailableError, InputError, ArtifactError. After an error nothing
    is left at `output` or beside it.
    """
    from sdk.building import Settings
    from sdk.pipeline import compile_model
    from sdk.progress import terminal

    wanted = Target.parse(target)
    wanted = wanted if precision is None else wanted.with_precision(precision)
    with terminal(progress) as report:
        settings = Settings(
            target=wanted,
            output=Path(output),
            task=task,
            features=features,
            layers=layers,
            attention=attention,
            width=width,
            context=context,
            calibration=calibration,
            check=check,
            metric=metric,
            max_drop=max_drop,
            max_latency_us=max_latency_us,
            max_bytes=max_bytes,
            keep_float=tuple(keep_float),
            group_size=group_size,
            method=method,
            processor=processor,
            kernels=kernels,
            waive=tuple(waive),
            fallback=fallback,
            overwrite=overwrite,
            threads=threads or default_threads(),
            provenance=provenance or {},
            progress=report,
        )
        if wanted.precision == AUTO:
            from sdk.search.run import search_model

            return search_model(model, inputs, settings, dynamic=dynamic).artifact
        return compile_model(model, inputs, settings, dynamic=dynamic)


def tune(
    model: Any,
    *,
    inputs: Any = None,
    target: str | Target,
    output: str | Path,
    task: str | None = None,
    dynamic: Mapping[str, Mapping[int, Dim]] | None = None,
    calibration: Iterable[Any] = (),
    check: Iterable[Any] = (),
    metric: Callable[[Callable[[Any], Any]], float] | None = None,
    max_drop: float | None = None,
    metric_key: str | None = None,
    max_latency_us: float | None = None,
    max_bytes: int | None = None,
    cache: bool | str | Path = True,
    keep_float: Sequence[str] = (),
    group_size: int | None = None,
    method: str = "rtn",
    processor: Processor | None = None,
    kernels: str = "auto",
    waive: Sequence[str] = (),
    fallback: str = "warn",
    overwrite: bool = False,
    threads: int | None = None,
    provenance: Mapping[str, str] | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Search:
    """Search all precisions of a device, and mixtures of them, for the best that passes its gates.

    Tried are the precisions that the engine has for the device and, for static ones, mixtures with
    the most sensitive layers in float: as few as the budget needs, and those that are faster there.
    All that pass are timed in one interleaved run, and the fastest is kept; it is therefore not
    slower than any single precision. What is not described here is as in `sdk.compile`.

    target: `engine[:device]`, or with the precision `auto`.
    metric, max_drop: the budget of accuracy; without, the error of the outputs is bounded.
    metric_key: names the metric and its data, such as `top-1 of the validation set, 2026-08`. With
        it the metric's values are kept in the cache; without, it is called anew for each candidate,
        since nobody can see from outside whether a function or its data have changed.
    max_latency_us: the largest median latency. With it the smallest artifact within it is kept that
        is not slower than fp32, in place of the fastest.
    max_bytes: the largest size of the engine files.
    cache: whether, or in which folder, builds are kept so that a search that was interrupted, or is
        run again, takes them up; default: `$XDG_CACHE_HOME/edge-sdk` or `~/.cache/edge-sdk`.

    Raises BudgetError where nothing is within the budgets, and what `sdk.compile` raises.
    """
    from sdk.building import Settings
    from sdk.progress import terminal
    from sdk.search.run import search_model

    with terminal(progress) as report:
        settings = Settings(
            target=_searched(Target.parse(target)),
            output=Path(output),
            task=task,
            calibration=calibration,
            check=check,
            metric=metric,
            max_drop=max_drop,
            metric_key=metric_key,
            max_latency_us=max_latency_us,
            max_bytes=max_bytes,
            keep_float=tuple(keep_float),
            group_size=group_size,
            method=method,
            processor=processor,
            kernels=kernels,
            waive=tuple(waive),
            fallback=fallback,
            overwrite=overwrite,
            threads=threads or default_threads(),
            provenance=provenance or {},
            progress=report,
        )
        return search_model(model, inputs, settings, dynamic=dynamic, cache=cache)


def _searched(target: Target) -> Target:
    """`engine:device` parses as fp32."""
    if target.precision not in ("fp32", AUTO):
        raise InputError(
            f"A search tries all precisions, not {target.precision} alone.",
            got=str(target),
            fix=f"use {target.with_precision(AUTO)}, or compile for {target}",
        )
    return target.with_precision(AUTO)


def engines() -> dict[str, Availability]:
    """What each engine can do on this machine, and what is missing where it cannot."""
    from sdk.runtimes import probe

    return {engine: probe(engine) for engine in ENGINES}


def verify(path: str | Path, *, device: str = "auto", threads: int | None = None) -> ParityReport:
    """Re-check an artifact on this device: hashes, signature and golden outputs.

    Returns the parity report of the golden values; raises ArtifactError or EngineError before that.
    """
    with load(path, device=device, fallback="forbid", threads=threads) as model:
        return model.check_golden()


def recipe(name: str, *, preset: str = "tiny", **settings: Any) -> Recipe:
    """A recipe by name with a preset's settings, some replaced. `.run("x.edge")` runs it."""
    from sdk import recipes

    return recipes.get(name, preset=preset, **settings)


def profile(model: Model | str | Path, *, runs: int = 100) -> Profile:
    """Measure a loaded model or an artifact: load, latency, operators, overhead, memory, size."""
    from sdk.profiling import profile_model

    return profile_model(model, runs=runs)
