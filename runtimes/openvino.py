"""OpenVINO: reads `model.onnx` through its own ONNX front end. Sessions are thread-safe."""

from __future__ import annotations

import contextlib
import copy
import queue
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from sdk.errors import EngineError, UnsupportedOperatorError
from sdk.extras import installed, require
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
    put,
    watch,
    without_engine,
)
from sdk.signature import Array, Signature
from sdk.target import Availability, DeviceSupport, Target

DEVICES = {"cpu": "CPU", "gpu": "GPU", "npu": "NPU"}
# The hint is always set: its CPU default is bf16 on machines that have it, whatever the model says.
HINTS = {"fp16": "f16", "bf16": "bf16"}

NOTES = (
    "OpenVINO's counters are means over calls in whole microseconds and have no starts: the trace "
    "lines the operators up in their order; what is cut off counts as engine overhead.",
)
NPU_PRECISIONS = ("int8", "fp16")
# It compiles at load by a library that comes with Intel's driver; the package brings the plugin.
NO_NPU = DeviceSupport(
    NPU_PRECISIONS,
    run=False,
    checked_on="proxy",
    reason="OpenVINO finds no Intel NPU, or not its driver, which brings the NPU's compiler",
    fix="on a Core Ultra machine install the driver: https://github.com/intel/linux-npu-driver",
)
NO_WORK = ("undef", "")  # kernels of operators that were fused into another one


def probe() -> Availability:
    """Version and devices of the installed OpenVINO."""
    if not installed("openvino"):
        return Availability(
            reason="openvino is not installed",
            fix="pip install 'edge-sdk[openvino]'",
        )
    ov = _ov()
    core = ov.Core()
    present = {name.partition(".")[0] for name in core.available_devices}
    able = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES") if "CPU" in present else []
    floats = ("fp32", *(p for p in ("fp16", "bf16") if p.upper() in able))
    precisions = (*floats, "int8", "w8", "int4", "int2")
    devices = {
        device: DeviceSupport(precisions) for device, name in DEVICES.items() if name in present
    }
    npu = DeviceSupport(NPU_PRECISIONS) if "npu" in devices else NO_NPU
    return Availability(ov.__version__.partition("-")[0], {**devices, "npu": npu})


def open_session(
    file: Path,
    signature: Signature,
    target: Target,
    *,
    threads: int,
    plugin: Plugin | None = None,
) -> OpenVinoSession:
    """Load `file` for `target` with `threads` inference threads."""
    return OpenVinoSession(file, signature, target, threads, plugin)


class OpenVinoSession:
    """A compiled model and a pool of infer requests: one per call that is under way."""

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
        self.prepares_for_shapes = target.device == "cpu"
        self.skips_unused_rows = plugin is not None and plugin.skips_unused_rows
        self._kernel_of: dict[str, str] = {}
        self._compiled = self._compile()
        self._requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._infer: Callable[[Any, Mapping[str, Array]], None] = _infer  # profile() wraps it
        self._check_names()

    def run(
        self, feed: Mapping[str, Array], outputs: Mapping[str, Array] | None = None
    ) -> dict[str, Array]:
        """Run once; results are copied out of the request's own memory."""
        requests = self._requests  # close() makes it another one, to which none comes back
        request = self._request(requests)
        try:
            self._infer(request, feed)
        except RuntimeError as error:
            raise EngineError(f"OpenVINO failed while running: {error}") from error
        results = {
            spec.name: self._take(request.get_output_tensor(index).data, spec.name, outputs)
            for index, spec in enumerate(self.signature.outputs)
        }
        requests.put(request)
        return results

    def bind(
        self, inputs: Mapping[str, Array], outputs: Mapping[str, Array]
    ) -> Callable[[], object]:
        """A call that reads and fills these very arrays each time."""
        tensor, request = _ov().Tensor, self._request(self._requests)
        for name, array in (*inputs.items(), *outputs.items()):
            request.set_tensor(name, tensor(array, shared_memory=True))

        def call(_arrays: object = (inputs, outputs)) -> None:  # the tensors do not own them
            try:
                request.infer(share_outputs=True)
            except RuntimeError as error:
                raise EngineError(f"OpenVINO failed while running: {error}") from error

        return call

    def placement(self) -> list[Placement]:
        """The optimised graph's operators with the primitives that OpenVINO chose."""
        device = self._target.device
        return [
            Placement(
                operator=row["name"],
                kind=row["layerType"],
                device=device,
                kernel=row["primitiveType"],
                reason="asked for",
                nodes=row["nodes"],
            )
            for row in self._graph(self._open()).values()
        ]

    def profile(
        self,
        feed: Mapping[str, Array],
        *,
        runs: int,
        through: Callable[[Session], Run] | None = None,
    ) -> EngineProfile:
        """Times from OpenVINO's performance counters, in a second compiled model that has them."""
        twin = copy.copy(self)
        twin._compiled = self._compile(PERF_COUNT=True)
        request = twin._compiled.create_infer_request()
        twin._requests = queue.SimpleQueue()
        twin._requests.put(request)
        twin._infer = binding = Stopwatch(self._infer)
        engine: list[tuple[float | None, float]] = []
        infos: list[Any] = []

        def collect() -> None:
            engine.append((None, request.latency * 1e3))
            infos.append(request.get_profiling_info())

        call = through(twin) if through else twin.run
        calls = watch(call, feed, runs, collect)
        graph, device = self._graph(twin._compiled), self._target.device
        return EngineProfile(
            call_times(calls, binding.spans, engine),
            _operators(infos, runs, graph, device),
            without_engine(call, feed, binding, lambda: self.run(feed)),
            NOTES,
        )

    def close(self) -> None:
        """Release the compiled model and its requests."""
        self._compiled = None
        self._requests = queue.SimpleQueue()

    def _request(self, requests: queue.SimpleQueue[Any]) -> Any:
        try:
            return requests.get_nowait()
        except queue.Empty:
            return self._open().create_infer_request()

    def _open(self) -> Any:
        return self._compiled or closed()

    @staticmethod
    def _take(data: Array, name: str, outputs: Mapping[str, Array] | None) -> Array:
        if outputs is None or name not in outputs:
            return data.copy()
        return put(data, outputs[name], name)

    def _compile(self, **properties: object) -> Any:
        core = _ov().Core()
        config = {
            "INFERENCE_PRECISION_HINT": HINTS.get(self._target.precision, "f32"),
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": self._threads,
        }
        if self._target.device != "cpu":
            del config["INFERENCE_NUM_THREADS"]
        if self._target.device == "npu":
            del config["INFERENCE_PRECISION_HINT"]  # it has half precision and integers, no choice
        with mapped_errors():
            if self._plugin is not None:
                core.add_extension(str(self._plugin.file))
            model = core.read_model(self._file)
            self._note_kernels(model)
            return core.compile_model(model, DEVICES[self._target.device], config | properties)

    def _check_names(self) -> None:
        with mapped_errors():
            inputs = [port.get_names() for port in self._compiled.inputs]
            outputs = [port.get_names() for port in self._compiled.outputs]
        check_names(
            self.signature,
            inputs,
            outputs,
        )

    def _note_kernels(self, model: Any) -> None:
        """OpenVINO calls the operators of an extension all alike: `Reference`."""
        if self._plugin is not None:
            kinds = {op.get_friendly_name(): op.get_type_name() for op in model.get_ops()}
            has = self._plugin.has
            self._kernel_of = {name: kind for name, kind in kinds.items() if has(kind)}

    def _graph(self, compiled: Any) -> dict[str, dict[str, Any]]:
        """Name -> facts of each operator of the optimised graph that does work."""
        graph = {}
        for node in compiled.get_runtime_model().get_ordered_ops():
            info = {key: value.astype(str) for key, value in node.get_rt_info().items()}
            if info.get("layerType") in (None, "Const", "Input", "Output"):
                continue
            nodes = tuple(filter(None, info.get("originalLayersNames", "").split(",")))
            name = node.get_friendly_name()
            kernel = info.get("primitiveType", "")
            if self._plugin is not None and name in self._kernel_of:
                info["layerType"] = info["kernel"] = self._kernel_of[name]
                kernel = self._plugin.kernel(self._kernel_of[name])
            graph[name] = {**info, "name": name, "primitiveType": kernel, "nodes": nodes}
        return graph


@contextlib.contextmanager
def mapped_errors() -> Iterator[None]:
    """The one place where OpenVINO's exceptions become the SDK's."""
    try:
        yield
    except (RuntimeError, UnicodeDecodeError) as error:  # its message may quote a broken file
        text = str(error)
        if (
            "OpConversionFailure" in text
            or "doesn't support" in text
            or "unsupported" in text.lower()
        ):
            raise UnsupportedOperatorError(
                "OpenVINO cannot convert an operator of this model.",
                got=text.strip().splitlines()[-1],
                fix="try another engine",
            ) from error
        raise EngineError(f"OpenVINO cannot load the model: {text}") from error


def _infer(request: Any, feed: Mapping[str, Array]) -> None:
    request.infer(feed, share_inputs=True, share_outputs=True)


def _ov() -> Any:
    return require("openvino", purpose="The engine 'openvino'")


def _operators(
    infos: list[Any], runs: int, graph: Mapping[str, Mapping[str, Any]], device: str
) -> tuple[OperatorTime, ...]:
    """The operators that ran in the last `runs` calls, in order, which is all there is for starts.

    A counter is the mean over all calls of the compiled model so far, so two readings of it give
    the mean over the calls between them.
    """
    rows: list[OperatorTime] = []
    start = 0.0
    for index, info in enumerate(infos[-1]):
        if info.node_name not in graph or info.exec_type in NO_WORK:
            continue
        sums = [len(past) * _microseconds(past[-1][index]) for past in (infos, infos[:-runs])]
        mean = max(0.0, (sums[0] - sums[1]) / runs)
        nodes = graph[info.node_name]["nodes"]
        durations, starts = (mean,) * runs, (start,) * runs
        kind = graph[info.node_name].get("kernel", info.node_type)
        rows.append(OperatorTime(info.node_name, kind, device, durations, starts, nodes))
        start += mean
    return tuple(rows)


def _microseconds(info: Any) -> float:
    return float(info.real_time.total_seconds() * 1e6)
