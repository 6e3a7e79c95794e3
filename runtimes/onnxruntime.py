"""ONNX Runtime: loads `model.onnx`. Sessions are thread-safe."""

from __future__ import annotations

import bisect
import contextlib
import copy
import json
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sdk import qnn
from sdk.errors import EngineError, UnsupportedOperatorError
from sdk.extras import installed, require
from sdk.runtimes import qnn as npu
from sdk.runtimes.plugins import Plugin
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

PROVIDERS = {"cpu": "CPUExecutionProvider", "gpu": "CUDAExecutionProvider"}
DEVICE_OF = {**{name: device for device, name in PROVIDERS.items()}, qnn.PROVIDER: "npu"}
# It quantizes the weights of layers between int8 ones that were left in float on purpose.
DISABLED = ["WeightBiasQuantization"]
# Its CPU provider has no bf16 convolutions.
PRECISIONS = ("fp32", "fp16", "int8", "w8", "int4", "int2")

NOTES = (
    "ONNX Runtime's profiler cuts each operator's time down to whole microseconds; what is lost, "
    "about half a microsecond per operator, counts as engine overhead.",
)
CLOCK_ERROR = 20.0  # us by which the wall clock may drift from the monotonic one while profiling


def probe() -> Availability:
    """Version and devices of the installed ONNX Runtime."""
    if not installed("onnxruntime"):
        return Availability(
            reason="onnxruntime is not installed",
            fix="pip install 'edge-sdk[onnxruntime]'",
        )
    ort = _ort()
    present = ort.get_available_providers()
    devices = {
        device: DeviceSupport(PRECISIONS) for device, name in PROVIDERS.items() if name in present
    }
    return Availability(ort.__version__, {**devices, "npu": npu.support()})


def open_session(
    file: Path,
    signature: Signature,
    target: Target,
    *,
    threads: int,
    plugin: Plugin | None = None,
) -> OnnxRuntimeSession:
    """Load `file` for `target` with `threads` intra-operator threads."""
    from sdk.runtimes import onnxruntime_decoder as decoder  # a kind of the session below

    kind = decoder.InPlaceOnnxSession if file.name == decoder.FILE else OnnxRuntimeSession
    return kind(file, signature, target, threads, plugin)


check_requires = npu.check_requires


class OnnxRuntimeSession:
    """One `InferenceSession`; a second, profiling one is made when it is asked for."""

    def __init__(
        self,
        file: Path,
        signature: Signature,
        target: Target,
        threads: int,
        plugin: Plugin | None = None,
    ) -> None:
        self.signature = signature
        self._file, self._target, self._threads = file, target, threads
        self._plugin = plugin
        self.skips_unused_rows = plugin is not None and plugin.skips_unused_rows
        self._output_names = [spec.name for spec in signature.outputs]
        self._session = self._create()
        self._run = self._session.run
        self._check_names()

    def run(
        self, feed: Mapping[str, Array], outputs: Mapping[str, Array] | None = None
    ) -> dict[str, Array]:
        """Run once; ONNX Runtime returns fresh arrays."""
        try:
            results = self._run(self._output_names, feed)
        except _failures(AttributeError, TypeError) as error:
            raise EngineError(f"ONNX Runtime failed while running: {error}") from error
        return fill(dict(zip(self._output_names, results, strict=True)), outputs)

    def bind(
        self, inputs: Mapping[str, Array], outputs: Mapping[str, Array]
    ) -> Callable[[], object]:
        """A call that reads and fills these very arrays each time."""
        binding = (self._session or closed()).io_binding()
        for arrays, bind in ((inputs, binding.bind_input), (outputs, binding.bind_output)):
            for name, array in arrays.items():
                bind(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
        failures, run = _failures(), self._session.run_with_iobinding

        def call(_arrays: object = (inputs, outputs)) -> None:  # the binding has addresses only
            try:
                run(binding)
            except failures as error:
                raise EngineError(f"ONNX Runtime failed while running: {error}") from error

        return call

    def placement(self) -> list[Placement]:
        """Read from one profiled run on zeros: ONNX Runtime does not tell otherwise."""
        wanted = self._target.device
        if self._session is None:
            closed()
        if wanted == "npu":
            return npu.placement(self._session, self._file, self.signature)
        return [
            Placement(
                operator=row.operator,
                kind=row.kind,
                device=row.device,
                kernel=self._kernel(row.kind),
                reason="asked for" if row.device == wanted else f"{wanted} has no kernel for it",
                nodes=row.nodes,
            )
            for row in self.profile(self.signature.zeros(), runs=1).operators
        ]

    def profile(
        self,
        feed: Mapping[str, Array],
        *,
        runs: int,
        through: Callable[[Session], Run] | None = None,
    ) -> EngineProfile:
        """Times from ONNX Runtime's profiler, in a second session that has it switched on."""
        with tempfile.TemporaryDirectory() as folder:
            twin = copy.copy(self)
            twin._session = self._create(profile_prefix=str(Path(folder) / "run"))
            twin._run = binding = Stopwatch(twin._session.run)
            lag = _clock_lag()
            call = through(twin) if through else twin.run
            calls = watch(call, feed, runs)
            origin = twin._session.get_profiling_start_time_ns() - lag
            events = json.loads(Path(twin._session.end_profiling()).read_text())
        whole = [event for event in events if event["name"] == "model_run"][-runs:]
        engine = [(origin / 1e3 + event["ts"], float(event["dur"])) for event in whole]
        if not _inside(engine, binding.spans[-runs:]):
            engine = [(None, duration) for _, duration in engine]
        return EngineProfile(
            call_times(calls, binding.spans, engine),
            _operators(events, whole),
            without_engine(call, feed, binding, lambda: self.run(feed)),
            (*NOTES, *npu.NOTE) if self._on_simulator() else NOTES,
        )

    def close(self) -> None:
        """Release the session."""
        self._session = None
        self._run = closed

    def _create(self, profile_prefix: str | None = None) -> Any:
        ort = _ort()
        options = ort.SessionOptions()
        options.intra_op_num_threads = self._threads
        options.log_severity_level = 3
        # idle threads that spin on would take the cores of whatever is timed next to this session
        options.add_session_config_entry("session.force_spinning_stop", "1")
        if profile_prefix is not None:
            options.enable_profiling = True
            options.profile_file_prefix = profile_prefix
        if self._target.device == "npu":
            return self._create_on_npu(options)
        providers = [PROVIDERS[self._target.device]]
        if self._plugin is not None:
            options.add_session_config_entry("edge.threads", str(self._threads))
        with mapped_errors():
            if self._plugin is not None:
                options.register_custom_ops_library(str(self._plugin.file))
            return ort.InferenceSession(
                self._file, options, providers=providers, disabled_optimizers=DISABLED
            )

    def _create_on_npu(self, options: Any) -> Any:
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        options.log_severity_level = 4  # it writes errors of nodes that go to the CPU
        qnn.add_provider(options, self._target.arch)
        with mapped_errors(), qnn.loading():
            return _ort().InferenceSession(self._file, options, disabled_optimizers=DISABLED)

    def _kernel(self, kind: str) -> str:
        """The plugin kernel's name and instruction set; ONNX Runtime's own have none but `kind`."""
        plugin = self._plugin
        return plugin.kernel(kind) if plugin is not None and plugin.has(kind) else kind

    def _on_simulator(self) -> bool:
        return self._target.device == "npu" and qnn.simulated()

    def _check_names(self) -> None:
        check_names(
            self.signature,
            [(value.name,) for value in self._session.get_inputs()],
            [(value.name,) for value in self._session.get_outputs()],
        )


@contextlib.contextmanager
def mapped_errors() -> Iterator[None]:
    """The one place where ONNX Runtime's exceptions become the SDK's."""
    try:
        yield
    except _failures() as error:
        text = str(error)
        if npu.CONTEXT in text and "not compatible with any execution provider" in text:
            raise npu.no_stand_in() from error
        if "NOT_IMPLEMENTED" in text or "is not a registered function/op" in text:
            raise UnsupportedOperatorError(
                "ONNX Runtime has no kernel for an operator of this model.",
                got=text.splitlines()[0],
                fix="try another precision or engine",
            ) from error
        raise EngineError(f"ONNX Runtime cannot load the model: {text}") from error


def _ort() -> Any:
    return require("onnxruntime", purpose="The engine 'onnxruntime'")


def _failures(*more: type[Exception]) -> tuple[type[Exception], ...]:
    """ONNX Runtime's own exceptions, which share no base but Exception, and `more`."""
    state = require("onnxruntime.capi.onnxruntime_pybind11_state", purpose="ONNX Runtime")
    names = ("Fail", "InvalidArgument", "InvalidGraph", "InvalidProtobuf", "NoSuchFile",
             "NotImplemented", "RuntimeException", "EPFail", "NoModel", "EngineError")  # fmt: skip
    return (*(getattr(state, name) for name in names), ValueError, RuntimeError, *more)


def _clock_lag() -> int:
    """Wall clock, which ONNX Runtime's profiler reads, less `perf_counter`, in nanoseconds."""
    readings = []
    for _ in range(5):
        before, wall, after = time.perf_counter_ns(), time.time_ns(), time.perf_counter_ns()
        readings.append((after - before, wall - (before + after) // 2))
    return min(readings)[1]


def _inside(
    engine: Sequence[tuple[float | None, float]], bindings: Sequence[tuple[int, int]]
) -> bool:
    """Whether each of the engine's runs lies in the Python call around it."""
    return all(
        began is not None
        and entered / 1e3 - CLOCK_ERROR <= began
        and began + duration <= left / 1e3 + CLOCK_ERROR
        for (began, duration), (entered, left) in zip(engine, bindings, strict=True)
    )


def _operators(
    events: list[dict[str, Any]], whole: list[dict[str, Any]]
) -> tuple[OperatorTime, ...]:
    """Kernel events, by name and by the run that they lie in; loops run an operator many times."""
    begins = [run["ts"] for run in whole]
    cells: dict[str, dict[int, list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for event in events:
        index = bisect.bisect_right(begins, event["ts"]) - 1
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time") and index >= 0:
            cells[event["name"].removesuffix("_kernel_time")][index].append(event)
    return tuple(_operator(name, cells[name], begins) for name in cells)


def _operator(
    name: str, runs: Mapping[int, list[dict[str, Any]]], begins: list[int]
) -> OperatorTime:
    last = runs[max(runs)][-1]["args"]
    provider = last.get("provider", "CPUExecutionProvider")
    found = [runs.get(index, []) for index in range(len(begins))]
    return OperatorTime(
        operator=name,
        kind=last["op_name"],
        device=DEVICE_OF.get(provider, provider),
        durations=tuple(float(sum(row["dur"] for row in rows)) for rows in found),
        starts=tuple(
            float(rows[0]["ts"] - begin) if rows else 0.0
            for rows, begin in zip(found, begins, strict=True)
        ),
        nodes=(name,),
    )
