"""From a model to an artifact: capture, convert, lower, verify on the engine, time, package.

An artifact is only written when the build computes what the model computes, on the engine that will
run it or, where this machine cannot run it, on what stands in for it: the manifest says which. Of
the requested precision and fp32 the faster one that passes is kept; the other stays in the manifest
with the reason.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from sdk.artifact import Artifact, publish, staging
from sdk.building import Builder, Settings, check_target
from sdk.environment import COMPILING, versions
from sdk.errors import InputError
from sdk.evidence import Built, candidate_of, provenance_of, write_evidence
from sdk.extras import require
from sdk.feeds import Feed
from sdk.greedy import gate_greedy
from sdk.manifest import FORMAT_VERSION, Candidate, Function, Manifest, Placed
from sdk.mixing import gated
from sdk.placement import enforce, place
from sdk.runtimes import support_of
from sdk.signature import Dim
from sdk.timing import Latency, sample

if TYPE_CHECKING:
    from sdk.compilers.program import Build

B = TypeVar("B", bound=Builder)
EAGER = "torch eager"
TIMING_SECONDS = 10.0
PLACEMENT_SECONDS = 0.25  # of profiled calls, for the operators' shares of the time


def compile_model(
    model: Any,
    inputs: Any,
    settings: Settings,
    *,
    dynamic: Mapping[str, Mapping[int, Dim]] | None = None,
) -> Artifact:
    """Capture `model` with example `inputs`, then build, gate and package it."""
    with prepared(model, inputs, settings, dynamic=dynamic, kind=Builder) as builder:
        return package(builder, *choose(builder, *candidates(builder)))


@contextlib.contextmanager
def prepared(
    model: Any,
    inputs: Any,
    settings: Settings,
    *,
    dynamic: Mapping[str, Mapping[int, Dim]] | None = None,
    kind: type[B],
) -> Iterator[B]:
    """A builder of the captured model, in a staging folder beside the output."""
    for module in ("torch", "onnx", "onnxscript", "torchao"):
        require(module, purpose="Compiling", extra="compile")
    from sdk.compilers.capture import capture, example_feed  # imports torch
    from sdk.compilers.huggingface import resolve
    from sdk.compilers.kernels import with_policy
    from sdk.compilers.program import Program, torch_threads

    check_target(settings.target)
    options: dict[str, Any] = {
        "features": settings.features,
        "layers": settings.layers,
        "attention": settings.attention,
        "shape": (settings.width, settings.context) if _fixed(settings) else None,
    }
    found = resolve(model, inputs, dynamic, task=settings.task, **options)
    model, inputs, dynamic = found.model, found.inputs, found.dynamic
    settings = replace(
        settings,
        processor=settings.processor or found.processor,
        check=settings.check or found.checks,
        function=found.function,
        files=found.files,
        language=found.language,
        calibration=settings.calibration or found.calibration,
        more=found.more,
        provenance={**found.provenance, **settings.provenance},
    )
    threads = torch_threads(settings.threads)
    with staging(settings.output, overwrite=settings.overwrite) as folder, threads:
        settings.progress("capture", 0, 1)
        program = with_policy(capture(model, inputs, dynamic), settings.kernels)
        if settings.processor is not None:
            settings.processor.check(program.signature)
        example = example_feed(model, inputs) or program.signature.zeros()
        given = model if isinstance(model, Program) and model.base is not None else None
        yield kind(settings, folder, program, example, given)


def _fixed(settings: Settings) -> bool:
    """Whether a language model must have fixed shapes; InputError where sizes come to nothing."""
    npu = settings.target.device == "npu" and settings.task == "text-generation"
    if not npu and (settings.width or settings.context):
        raise InputError(
            "width and context are those of language models on NPUs.",
            got=f"{settings.target}, task {settings.task}",
            fix="leave them out: elsewhere each step has the size that it needs",
        )
    return npu


def candidates(builder: Builder) -> tuple[Built | None, Built | None]:
    """The fp32 build and the one at the requested precision, both gated.

    Without fp32 on the device, or where nothing can be timed, there is no fp32 build; where fp32
    was requested there is no other one.
    """
    target = builder.settings.target
    if target.precision == "fp32":
        return builder.made("fp32"), None
    support = support_of(target)
    timed = support.checked_on == "engine" and "fp32" in support.precisions
    baseline = builder.made("fp32") if timed else None
    return baseline, gated(builder, target.precision, baseline)


def choose(
    builder: Builder, baseline: Built | None, wanted: Built | None
) -> tuple[Built, tuple[Candidate, ...], Latency | None]:
    """Time both, and PyTorch, in one run; keep the faster build that passed.

    Returns it, the manifest's rows of both, and PyTorch's latency where anything was timed.
    """
    builder.settings.progress("time", 0, 1)
    builts = [built for built in (baseline, wanted) if built is not None]
    eager = time_builds(builder, builts)
    kept, reason = _decide(baseline, wanted, builder.settings.waive)
    rows = tuple(
        candidate_of(built, baseline, kept=built is kept, reason=reason) for built in builts
    )
    return kept, rows, eager


def time_builds(
    builder: Builder, builts: list[Built], *, runs: int = 100, seconds: float = TIMING_SECONDS
) -> Latency | None:
    """Give each build that runs on its engine a latency, all of one run; return PyTorch's.

    At most `runs` calls of each, and about `seconds` in all.
    """
    feed = builder.feeds[0]
    timed: dict[str, Built] = {}
    for built in builts:
        if built.checked_on == "engine":
            twin = f" #{len(timed)}" if str(built.target) in timed else ""
            timed[f"{built.target}{twin}"] = built
    if not timed:
        return None
    calls = {name: _caller(built.session.run, feed) for name, built in timed.items()}
    calls[EAGER] = _caller(builder.program.reference, feed)
    walls = sample(calls, runs=runs, budget=seconds)
    for name, built in timed.items():
        built.walls, built.latency = walls[name], Latency.of(walls[name])
    return Latency.of(walls[EAGER])


def package(
    builder: Builder, kept: Built, rows: tuple[Candidate, ...], eager: Latency | None
) -> Artifact:
    """Write the kept build, golden values and manifest, and rename to the output."""
    settings = builder.settings
    placed, more = _placed(builder, kept), _further(builder, kept)
    settings.progress("package", 0, 1)
    root = builder.folder / "artifact"
    functions = {settings.function: Function(builder.program.signature, _file(kept.build))}
    for session in (kept.session, *(built.session for built in more.values())):
        session.close()
    shutil.move(kept.build.folder, root)
    for name, built in more.items():
        assert built.program is not None
        shutil.move(built.build.folder, root / name)
        file = f"{name}/{_file(built.build)}"
        functions[name] = Function(built.program.signature, file)
    write_evidence(root, kept, placed, settings.processor, settings.files)
    manifest = _manifest(builder, kept, rows, eager, functions)
    return publish(root, manifest, settings.output, overwrite=settings.overwrite)


def _further(builder: Builder, kept: Built) -> dict[str, Built]:
    """The artifact's other functions at the precision that was kept, each gated by itself.

    A model with an encoder generates with all of them what transformers does, else ParityError.
    """
    from sdk.compilers.capture import capture, example_feed  # imports torch

    settings, made = builder.settings, {}
    for name, found in settings.more.items():
        own = replace(settings, check=(), calibration=(), language=None, more={}, function=name)
        example = example_feed(found.model, found.inputs)
        assert example is not None
        program = capture(found.model, found.inputs, found.dynamic)
        part = Builder(own, builder.folder / name, program, example)
        made[name] = part.made(kept.target.precision)
        part.gate_fidelity(made[name])
    if "encode" in made and settings.language is not None and kept.checked_on == "engine":
        wanted, eos = settings.language.continuation, settings.language.eos
        source = made["encode"].session.run({"source": np.array([wanted.source])})
        strict = kept.target.precision == "fp32" and "parity" not in settings.waive
        gate_greedy(kept.session, wanted, strict=strict, source=source, eos=eos)
    return made


def _file(build: Build) -> str:
    """The engine's file, seen from the build's folder."""
    return build.file.relative_to(build.folder).as_posix()


def _placed(builder: Builder, kept: Built) -> tuple[Placed, ...]:
    """Where its operators run; the fallback policy is enforced on them."""
    settings = builder.settings
    settings.progress("place operators", 0, 1)
    if kept.latency is None:
        placed = place(kept.session, None, 0)
    else:
        runs = int(PLACEMENT_SECONDS * 1e6 / max(kept.latency.p50, 1.0))
        placed = place(kept.session, builder.feeds[0], min(max(runs, 1), 20))
    enforce(placed, kept.target, settings.fallback)
    return placed


def _decide(
    baseline: Built | None, wanted: Built | None, waive: Sequence[str]
) -> tuple[Built, str]:
    """The build to keep and, for the other one, why not."""
    if wanted is None:
        assert baseline is not None
        return baseline, "asked for"
    if wanted.latency is None:
        return wanted, f"asked for; not timed here: it was checked on a {wanted.checked_on}"
    if baseline is None or baseline.latency is None:
        return wanted, "asked for; the device has no fp32 to compare with"
    fast, slow = wanted.latency.p50, baseline.latency.p50
    figures = f"{fast:.0f} us against {slow:.0f} us (median, one interleaved run)"
    if fast <= slow:
        return wanted, f"{wanted.target.precision} is faster: {figures}"
    if "slower" in waive:
        return wanted, f"slower, waived: {figures}"
    return baseline, f"{wanted.target.precision} is slower than fp32: {figures}"


def _manifest(
    builder: Builder,
    kept: Built,
    rows: tuple[Candidate, ...],
    eager: Latency | None,
    functions: dict[str, Function],
) -> Manifest:
    settings = builder.settings
    return Manifest(
        format_version=FORMAT_VERSION,
        name=settings.output.stem,
        target=str(kept.target),
        requested=str(settings.target),
        functions=functions,
        candidates=rows,
        check_batches=len(builder.feeds),
        threads=settings.threads,
        tools=versions(COMPILING),
        provenance=provenance_of(builder.program.source, kept, settings.provenance),
        requires=dict(kept.build.requires),
        kernels=kept.build.kernels,
        eager=eager,
        waivers=tuple(settings.waive),
    )


def _caller(run: Callable[[Feed], object], feed: Feed) -> Callable[[], object]:
    return lambda: run(feed)
