"""A loaded artifact: one `predict` for raw input and for arrays."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from sdk.artifact import PROCESSOR, Artifact
from sdk.errors import (
    CorruptArtifactError,
    EngineUnavailableError,
    InputError,
    ParityError,
)
from sdk.generative import Generative
from sdk.kernels.needs import check_kernels
from sdk.parity import TOLERANCE, ParityReport, compare
from sdk.placement import FALLBACKS, FallbackWarning, enforce
from sdk.processor import Processor
from sdk.runtimes import check_requires, open_session, probe
from sdk.runtimes.huge_pages import HugePages
from sdk.runtimes.session import Placement, Session
from sdk.signature import Array, Dim, Signature, fits
from sdk.structure import FIX, parse
from sdk.target import DEVICES, Target


def load(
    path: str | Path | Artifact,
    *,
    device: str = "auto",
    fallback: str = "warn",
    threads: int | None = None,
) -> Model:
    """Open and verify the artifact at `path` and load it on `device`.

    `device` is `auto` (the artifact's own), `cpu`, `gpu` or `npu`. Where the engine does not have
    it here, `fallback` decides: `forbid` raises EngineUnavailableError, `warn` takes the CPU with a
    FallbackWarning, `allow` takes the CPU. The same policy holds for single operators that the
    device does not run. `threads` are the engine's; default: all cores allowed.

    An artifact that was not checked on its engine when it was compiled is checked against its
    golden values here, and ParityError is raised where they are out of bounds.
    """
    if threads is not None and threads < 1:
        raise InputError("threads must be at least 1, or None for all cores.", got=threads)
    artifact = path if isinstance(path, Artifact) else Artifact.open(path)
    manifest = artifact.manifest
    check_kernels(manifest.kernels)
    target, note = _choose(Target.parse(manifest.target), device, fallback)
    check_requires(target, manifest.requires)
    function = manifest.function
    processor = _processor(artifact, function.signature)
    threads = threads or default_threads()
    pages = HugePages(wanted="step" in manifest.functions and target.device == "cpu")
    with pages.watch():
        session = open_session(
            artifact.path / function.file,
            function.signature,
            target,
            threads=threads,
            kernels=manifest.kernels,
        )
    model = Model(artifact, session, target, processor, note=note, threads=threads, pages=pages)
    with contextlib.ExitStack() as undo:
        undo.callback(model.close)
        if target.device != "cpu" and fallback != "allow":
            enforce(session.placement(), target, fallback)
        if manifest.kept.checked_on != "engine":
            _prove(model)
        undo.pop_all()
    return model


def default_threads() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Model(Generative):
    """A model on a device. Safe to call from several threads; close it or use it in `with`."""

    def __init__(
        self,
        artifact: Artifact,
        session: Session,
        target: Target,
        processor: Processor | None,
        *,
        note: str,
        threads: int,
        pages: HugePages | None = None,
    ) -> None:
        self.artifact, self.session, self.target = artifact, session, target
        self.processor, self._note, self.threads = processor, note, threads
        self._pages = pages or HugePages(wanted=False)
        self.signature = session.signature
        self._call = as_function(session)

    def predict(self, value: Any, *, outputs: Mapping[str, Array] | None = None) -> Any:
        """Run the model once, or on a list of inputs.

        - a tensor (a NumPy array of the signature's dtype and rank) or a mapping of them goes to
          the model as it is; the result is an array, or a dict of arrays where the model has
          several outputs or `value` was a mapping;
        - anything else is raw input for the artifact's processor (an image file, bytes, a picture);
          the result is what the processor declares, such as labels;
        - a list gives a list of results.

        Results are fresh arrays unless `outputs` gives buffers by output name, which are filled.
        """
        if isinstance(value, (np.ndarray, Mapping)) and not self._is_raw(value):
            if self.processor is not None:
                self._check_finite(self.processor, value)
            return self._call(value, outputs)
        if outputs is not None:
            raise InputError(
                "Output buffers are for one run on arrays.",
                got=type(value).__name__,
                fix="leave outputs out, or pass the model's arrays themselves",
            )
        if isinstance(value, list):
            return self._predict_many(value)
        return self._predict_raw([value])[0]

    async def apredict(self, value: Any) -> Any:
        """`predict` in a worker thread, for use with `await`."""
        return await asyncio.to_thread(self.predict, value)

    def placement(self) -> list[Placement]:
        """Which operator runs where, with which kernel, and why."""
        rows = self.session.placement()
        if not self._note:
            return rows
        return [
            Placement(r.operator, r.kind, r.device, r.kernel, self._note, r.nodes) for r in rows
        ]

    def check_golden(self) -> ParityReport:
        """Run the artifact's golden inputs and compare with its golden outputs."""
        pairs = self.artifact.golden()
        got = {f"{i}/{name}": array for i, (feed, _) in enumerate(pairs)
               for name, array in self.predict(feed).items()}  # fmt: skip
        want = {f"{i}/{name}": array for i, (_, outputs) in enumerate(pairs)
                for name, array in outputs.items()}  # fmt: skip
        return compare(got, want, TOLERANCE[self.target.precision])

    def close(self) -> None:
        """Release the engine's memory."""
        self.session.close()

    def __enter__(self) -> Model:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Model({str(self.artifact.path)!r}, {self.target})"

    def _is_raw(self, value: Any) -> bool:
        """Whether an array is a picture for the processor: its dtype or rank is not the input's."""
        if self.processor is None or isinstance(value, Mapping):
            return False
        spec = self.signature.inputs[0]
        return value.dtype == np.uint8 and (value.ndim, value.dtype) != (
            len(spec.shape),
            spec.dtype,
        )

    @staticmethod
    def _check_finite(processor: Processor, value: Any) -> None:
        array = value.get(processor.input) if isinstance(value, Mapping) else value
        if isinstance(array, np.ndarray):
            processor.check_finite(array)

    def _predict_many(self, values: list[Any]) -> list[Any]:
        if not values:
            return []
        raw = [not isinstance(v, (np.ndarray, Mapping)) or self._is_raw(v) for v in values]
        if all(raw):
            return self._predict_raw(values)
        return [self.predict(value) for value in values]

    def _predict_raw(self, values: Sequence[Any]) -> list[Any]:
        """Through the processor, in batches as large as the signature allows."""
        processor = self.processor
        if processor is None or processor.pre is None:
            raise InputError(
                "This artifact declares no processor for raw input.",
                expected=", ".join(f"{s.name}: {s}" for s in self.signature.inputs),
                got=type(values[0]).__name__,
                fix="pass an array, or compile with processor=sdk.Processor(...)",
            )
        least, most = _batch_sizes(self.signature, processor.input)
        results: list[Any] = []
        for start in range(0, len(values), most):
            batch = processor.pre(list(values[start : start + most]))
            count = len(batch)
            if count < least:  # a fixed batch is filled up; what comes of that is dropped
                batch = np.concatenate([batch, batch[-1:].repeat(least - count, axis=0)])
            feed = {processor.input: batch}
            self.signature.check(feed)
            results += _declared(processor, self.session.run(feed), len(batch))[:count]
        return results


def as_function(session: Session) -> Callable[..., Any]:
    """The session as a checked function of an array or a mapping of arrays."""
    return as_checked(session.signature, session.run)


def as_checked(signature: Signature, run: Callable[..., dict[str, Array]]) -> Callable[..., Any]:
    """`run`, which takes a feed, as a checked function of an array or a mapping of arrays."""
    check = signature.check
    only_input = signature.inputs[0].name if len(signature.inputs) == 1 else None
    only_output = signature.outputs[0].name if len(signature.outputs) == 1 else None

    def call(value: Any, outputs: Mapping[str, Array] | None = None) -> Any:
        if outputs is not None:
            _check_buffers(signature, outputs)
        if isinstance(value, Mapping):
            check(value)
            return run(value, outputs)
        if only_input is None:
            names = [spec.name for spec in signature.inputs]
            raise InputError(
                f"The model has {len(names)} inputs.",
                expected=f"a mapping of {names}",
                got="one array",
                fix="pass {name: array, ...}",
            )
        feed = {only_input: value}
        check(feed)
        results = run(feed, outputs)
        return results if only_output is None else results[only_output]

    return call


def _check_buffers(signature: Signature, outputs: Mapping[str, Array]) -> None:
    """What can be known before the run; sizes that vary are checked when a buffer is filled."""
    known = {spec.name: spec for spec in signature.outputs}
    for name, buffer in outputs.items():
        spec = known.get(name)
        if spec is None:
            raise InputError(f"The model has no output {name!r}.", expected=list(known), got=name)
        writeable = isinstance(buffer, np.ndarray) and buffer.flags.writeable
        if not writeable or buffer.dtype != spec.dtype or not fits(buffer.shape, spec.shape, {}):
            raise InputError(
                f"The buffer for the output {name!r} does not fit.",
                expected=f"a writeable array {spec}",
                got=_described(buffer),
            )
    if any(np.shares_memory(a, b) for a, b in itertools.combinations(outputs.values(), 2)):
        raise InputError("Two output buffers share memory.", fix="pass separate arrays")


def _described(buffer: object) -> str:
    if not isinstance(buffer, np.ndarray):
        return type(buffer).__name__
    return f"{'' if buffer.flags.writeable else 'read-only '}{buffer.dtype}{list(buffer.shape)}"


def _batch_sizes(signature: Signature, name: str) -> tuple[int, int]:
    """The least and the most raw inputs that one run takes."""
    (spec,) = (spec for spec in signature.inputs if spec.name == name)
    first = spec.shape[0]
    return (first.min, first.max) if isinstance(first, Dim) else (first, first)


def _declared(processor: Processor, outputs: dict[str, Array], count: int) -> list[Any]:
    """One result per input: what the processor declares, else the rows of the outputs."""
    if processor.post is not None and processor.output is not None:
        return list(processor.post(outputs[processor.output]))
    whole = [name for name, array in outputs.items() if array.shape[:1] != (count,)]
    if whole:
        raise InputError(
            f"The outputs {whole} have no row for each raw input.",
            fix="pass arrays instead of raw inputs, or compile with a Processor that has a `post`",
        )
    rows = [{name: array[i] for name, array in outputs.items()} for i in range(count)]
    return [next(iter(row.values())) if len(row) == 1 else row for row in rows]


def _choose(target: Target, device: str, fallback: str) -> tuple[Target, str]:
    """The target to load and, where it is not what was asked for, why."""
    if device not in ("auto", *DEVICES) or fallback not in FALLBACKS:
        raise InputError(
            "load() was asked for something unknown.",
            expected=f"device in {('auto', *DEVICES)}, fallback in {FALLBACKS}",
            got=f"device={device!r}, fallback={fallback!r}",
        )
    wanted = target.device if device == "auto" else device
    available = probe(target.engine)
    chosen = Target(target.engine, wanted, target.precision, target.arch)
    if not available.run or wanted in available.runnable or fallback == "forbid":
        return chosen, ""  # open_session explains what is missing
    if "cpu" not in available.runnable:
        raise EngineUnavailableError(
            f"The engine {target.engine!r} has neither {wanted!r} nor a CPU here.",
            expected=f"one of {', '.join(available.runnable)}",
            got=wanted,
        )
    note = f"{wanted} is not there; the CPU stands in for it"
    if fallback == "warn":
        warnings.warn(f"{target}: {note}.", FallbackWarning, stacklevel=3)
    return Target(target.engine, "cpu", target.precision), note


def _prove(model: Model) -> None:
    """The golden values on this device: the first time that its engine runs the artifact."""
    report = model.check_golden()
    if report.ok:
        return
    checked_on = model.artifact.manifest.kept.checked_on
    raise ParityError(
        f"The artifact does not compute its golden values on {model.target}; when it was compiled "
        f"it was only checked on a stand-in ({checked_on}).",
        expected="golden outputs within tolerance",
        got=str(report),
        fix="compile on a machine that has the engine, or at a higher precision",
        report=report,
    )


def _processor(artifact: Artifact, signature: Signature) -> Processor | None:
    text = artifact.read(PROCESSOR)
    if text is None:
        return None
    processor = Processor.from_json(parse(text, "processor"))
    try:
        processor.check(signature)
    except InputError as error:
        raise CorruptArtifactError(
            f"{PROCESSOR}: {error.what}", expected=error.expected, got=error.got, fix=FIX
        ) from error
    return processor
