"""Core ML: loads `model.mlpackage` through coremltools on macOS. Sessions are thread-safe.

Written against the API of coremltools 8 and 9 (`MLModel`, `MLState`, `MLComputePlan`), which runs
models on macOS only. Elsewhere the tests drive it with a stand-in for that binding, which shows the
order of its calls and the way of the data, and nothing of Core ML.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import importlib.metadata
import platform
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from sdk.apple import SYSTEMS, UNITS, file_names, from_file, to_file
from sdk.errors import EngineError, EngineUnavailableError
from sdk.extras import installed, require
from sdk.runtimes.session import (
    EngineProfile,
    OperatorTime,
    Placement,
    Run,
    Session,
    Stopwatch,
    call_times,
    check_names,
    closed,
    fill,
    watch,
    without_engine,
)
from sdk.signature import Array, Signature
from sdk.target import Availability, DeviceSupport, Target

PRECISIONS = ("fp32", "fp16", "int8", "w8", "int4", "int2", "pal6", "pal4")
DEVICE_OF = {
    "MLCPUComputeDevice": "cpu", "MLGPUComputeDevice": "gpu", "MLNeuralEngineComputeDevice": "npu",
}  # fmt: skip
FAILURES = (RuntimeError, ValueError, TypeError, OSError)
NOTES = (
    "Core ML times no operators: those shown are its own estimate of each operator's share of the "
    "call, before anything ran.",
)


def probe() -> Availability:
    """The installed coremltools, and whether this is a Mac, which runs what it compiles."""
    if not installed("coremltools"):
        return Availability(
            reason="coremltools is not installed", fix="pip install 'edge-sdk[coreml]'"
        )
    version = importlib.metadata.version("coremltools")
    if platform.system() == "Darwin":
        return Availability(version, {d: DeviceSupport(_able(d)) for d in _devices_of_a_mac()})
    return Availability(version, {device: _elsewhere(device) for device in UNITS})


def _elsewhere(device: str) -> DeviceSupport:
    return DeviceSupport(
        _able(device),
        run=False,
        checked_on="evaluator",
        reason="Core ML runs on macOS, iOS and their kin only; here its files can be evaluated",
        fix="compile here, and load the artifact on a Mac or in an app",
    )


def _able(device: str) -> tuple[str, ...]:
    """The Neural Engine computes in fp16 whatever the weights are."""
    return PRECISIONS[1:] if device == "npu" else PRECISIONS


def _devices_of_a_mac() -> tuple[str, ...]:
    """Macs with Intel processors have no Neural Engine."""
    return tuple(UNITS) if platform.machine() == "arm64" else ("cpu", "gpu")


def check_requires(requires: Mapping[str, str]) -> None:
    """Refuse files for a later system than this Mac's."""
    wanted = requires.get("deployment", "")
    release = platform.mac_ver()[0]
    if not release or wanted not in SYSTEMS:
        return
    if int(release.partition(".")[0]) < SYSTEMS[wanted]:
        raise EngineUnavailableError(
            "The Core ML file is for a later system.",
            expected=f"{wanted}, which is macOS {SYSTEMS[wanted]} or later",
            got=f"macOS {release}",
            fix="update macOS, or compile for an older one, for example 'coreml:npu:fp16:iOS16'",
        )


def open_session(
    file: Path, signature: Signature, target: Target, *, threads: int
) -> CoreMlSession:
    """Load the package that `file` lies in; Core ML chooses its own number of threads."""
    del threads
    return CoreMlSession(file.parent, signature, target)


class CoreMlSession:
    """One `MLModel`; calls of several threads take turns, as Core ML demands of one model.

    A stateful model starts from fresh states in each run; `make_state` gives states that live on,
    to be passed to each run that shares them.
    """

    def __init__(self, package: Path, signature: Signature, target: Target) -> None:
        self.signature = signature
        self._target = target
        self._lock = threading.Lock()
        self._model = _load(package, target)
        self._predict: Callable[..., Any] = self._model.predict
        description = self._model.get_spec().description
        self._stateful = bool(len(description.state))
        self._outputs = file_names(signature.outputs, file_names(signature.inputs))
        check_names(
            _renamed(signature),
            [(port.name,) for port in description.input],
            [(port.name,) for port in description.output],
        )

    def run(
        self,
        feed: Mapping[str, Array],
        outputs: Mapping[str, Array] | None = None,
        *,
        state: Any = None,
    ) -> dict[str, Array]:
        """Run once; fresh arrays, or the given ones, filled. `state` is updated by Core ML."""
        arrays = to_file(feed, self.signature.inputs)
        if state is None and self._stateful:
            state = self.make_state()
        with _mapped_errors("running"), self._lock:
            found = self._predict(arrays) if state is None else self._predict(arrays, state=state)
        results = from_file([found[name] for name in self._outputs], self.signature.outputs)
        return fill(results, outputs)

    def make_state(self) -> Any:
        """States as they begin: zeros."""
        with _mapped_errors("making a state"):
            return self._model.make_state()

    def placement(self) -> list[Placement]:
        """The devices that Core ML's compute plan prefers."""
        return [
            Placement(
                name,
                kind,
                device,
                "Core ML",
                "asked for" if device == self._target.device else f"Core ML prefers the {device}",
                (name,),
            )
            for name, kind, device, _ in self._plan()
        ]

    def profile(
        self,
        feed: Mapping[str, Array],
        *,
        runs: int,
        through: Callable[[Session], Run] | None = None,
    ) -> EngineProfile:
        """Times of whole calls; operators by Core ML's own estimate of their shares."""
        twin = copy.copy(self)
        twin._predict = binding = Stopwatch(self._predict)
        call = through(twin) if through else twin.run
        calls = watch(call, feed, runs)
        spans = [(start / 1e3, (end - start) / 1e3) for start, end in binding.spans[-runs:]]
        return EngineProfile(
            call_times(calls, binding.spans, spans),
            tuple(_estimates(self._plan(), [duration for _, duration in spans])),
            without_engine(call, feed, binding, lambda: self.run(feed)),
            NOTES,
        )

    def close(self) -> None:
        """Release the model."""
        self._model, self._predict = CLOSED, closed

    def _plan(self) -> list[tuple[str, str, str, float]]:
        """Operator, kind, preferred device and share (0 to 1) of each operator."""
        plans = _coremltools("coremltools.models.compute_plan")
        with _mapped_errors("planning"):
            plan = plans.MLComputePlan.load_from_path(
                path=self._model.get_compiled_model_path(), compute_units=self._model.compute_unit
            )
            block = plan.model_structure.program.functions["main"].block
            return [row for row in map(lambda o: _planned(plan, o), block.operations) if row]


class _Closed:
    """What is left of a model that was closed."""

    def __getattr__(self, _name: str) -> Any:
        return closed


CLOSED = _Closed()


def _planned(plan: Any, operation: Any) -> tuple[str, str, str, float] | None:
    """None for constants, which no device runs."""
    usage = plan.get_compute_device_usage_for_mlprogram_operation(operation)
    if usage is None:
        return None
    cost = plan.get_estimated_cost_for_mlprogram_operation(operation)
    kind = operation.operator_name.rpartition(".")[2]  # such as ios18.conv
    name = operation.outputs[0].name if operation.outputs else kind
    device = type(usage.preferred_compute_device).__name__
    return name, kind, DEVICE_OF.get(device, device), 0.0 if cost is None else cost.weight


def _estimates(
    plan: list[tuple[str, str, str, float]], durations: list[float]
) -> Iterator[OperatorTime]:
    """Each operator in each call: its share of the engine's time, one behind the other."""
    begun = 0.0
    for name, kind, device, share in plan:
        yield OperatorTime(
            name,
            kind,
            device,
            tuple(share * duration for duration in durations),
            tuple(begun * duration for duration in durations),
            (name,),
        )
        begun += share


def _renamed(signature: Signature) -> Signature:
    """The signature under the file's names."""
    read = file_names(signature.inputs)
    made = file_names(signature.outputs, read)
    return Signature(
        *(
            tuple(dataclasses.replace(s, name=n) for s, n in zip(specs, names, strict=True))
            for specs, names in ((signature.inputs, read), (signature.outputs, made))
        )
    )


def _load(package: Path, target: Target) -> Any:
    ct = _coremltools()
    with _mapped_errors("loading"):
        return ct.models.MLModel(
            str(package), compute_units=getattr(ct.ComputeUnit, UNITS[target.device])
        )


@contextlib.contextmanager
def _mapped_errors(what: str) -> Iterator[None]:
    """The one place where Core ML's exceptions become the SDK's."""
    try:
        yield
    except FAILURES as error:
        raise EngineError(f"Core ML failed while {what}: {error}") from error


def _coremltools(module: str = "coremltools") -> Any:
    return require(module, purpose="The engine 'coreml'")
