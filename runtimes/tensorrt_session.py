"""A loaded TensorRT engine: buffers made once, one stream, a CUDA graph where shapes are fixed."""

from __future__ import annotations

import contextlib
import copy
import json
import re
import threading
import weakref
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sdk.errors import EngineError
from sdk.nvidia import listener
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
    watch,
    without_engine,
)
from sdk.runtimes.tensorrt_cuda import Cuda
from sdk.runtimes.tensorrt_io import Ports
from sdk.signature import Array, Signature
from sdk.target import Target

NODE = re.compile(r"\[ONNX Layer: ([^\]]+)\]")
NOTES = (
    "TensorRT times each layer with the others held back, and without its CUDA graph: the sum of "
    "the layers may be more than the time of a call.",
)


class TensorRtSession:
    """One execution context; calls from several threads take turns."""

    def __init__(
        self, file: Path, signature: Signature, target: Target, trt: Any, cuda: Cuda
    ) -> None:
        self.signature = signature
        self._target, self._trt, self._cuda = target, trt, cuda
        self._lock = threading.Lock()
        self._log = listener(trt)
        self._graph: Any = None
        with contextlib.ExitStack() as stack:
            self._engine = self._deserialize(file)
            self._check_names()
            self._context = self._engine.create_execution_context()
            self._stream = cuda.stream()
            stack.callback(cuda.free_stream, self._stream)
            with self._mapped_errors("load"):
                self._ports = Ports(self._context, signature, cuda, stack)
                self._note = self._record(stack)
            self._release = weakref.finalize(self, stack.pop_all().close)
        self._execute: Callable[[], None] = self._run_once  # profile() wraps it

    def run(
        self, feed: Mapping[str, Array], outputs: Mapping[str, Array] | None = None
    ) -> dict[str, Array]:
        """Run once; results are copied out of the session's pinned memory."""
        with self._lock, self._mapped_errors("run"):
            if not self._release.alive:
                closed()
            self._ports.put(feed, self._context)
            self._execute()
            return self._ports.take(self._context, outputs)

    def placement(self) -> list[Placement]:
        """The engine's layers, with the kernels that TensorRT chose for them."""
        return [
            Placement(
                operator=layer["Name"],
                kind=layer.get("LayerType", ""),
                device="gpu",
                kernel=layer.get("TacticName", ""),
                reason=f"asked for; {self._note}",
                nodes=tuple(NODE.findall(layer.get("Metadata", ""))),
            )
            for layer in self._layers()
        ]

    def profile(
        self,
        feed: Mapping[str, Array],
        *,
        runs: int,
        through: Callable[[Session], Run] | None = None,
    ) -> EngineProfile:
        """Times from TensorRT's profiler, in a second context without a CUDA graph."""
        twin = copy.copy(self)
        twin._graph = None
        twin._context = self._engine.create_execution_context()
        self._ports.attach(twin._context, self.signature)
        seen = _profiler(self._trt)
        twin._context.profiler = seen
        twin._context.enqueue_emits_profile = True
        with self._events() as (start, end):
            spans: list[tuple[float | None, float]] = []
            layers: list[dict[str, float]] = []

            def timed() -> None:
                self._cuda.record(start, self._stream)
                twin._enqueue()
                self._cuda.record(end, self._stream)
                self._cuda.synchronize(self._stream)

            def collect() -> None:
                spans.append((None, self._cuda.microseconds(start, end)))
                layers.append(seen.take())

            twin._execute = binding = Stopwatch(timed)
            calls = watch(through(twin) if through else twin.run, feed, runs, collect)
            call = through(twin) if through else twin.run
            framework = without_engine(call, feed, binding, lambda: self.run(feed))
        return EngineProfile(
            call_times(calls, binding.spans, spans),
            self._operators(layers[-runs:]),
            framework,
            NOTES,
        )

    def close(self) -> None:
        """Release the context, the engine and all memory."""
        with self._lock:
            self._release()
            self._graph = self._context = self._engine = None

    def _run_once(self) -> None:
        if self._graph is None:
            self._enqueue()
        else:
            self._cuda.launch(self._graph, self._stream)
        self._cuda.synchronize(self._stream)

    def _enqueue(self) -> None:
        self._ports.copies_in(self._context, self._stream)
        if not self._context.execute_async_v3(int(self._stream)):
            raise EngineError("TensorRT refused to run.", got=self._said())
        self._ports.copies_out(self._context, self._stream)

    def _record(self, stack: contextlib.ExitStack) -> str:
        """Run once on zeros, which compiles what is compiled late, then record a CUDA graph.

        Returns whether there is one, or why not.
        """
        if any(port.dynamic for port in self._ports.inputs):
            return "no CUDA graph: shapes vary"
        self._enqueue()
        self._cuda.synchronize(self._stream)
        capturable = getattr(self._context, "is_stream_capturable", lambda _: True)
        if not capturable(int(self._stream)):
            return "no CUDA graph: TensorRT cannot be recorded here"
        self._cuda.begin_capture(self._stream)
        try:
            self._enqueue()
            self._graph = self._cuda.end_capture(self._stream)
        except EngineError as error:
            self._cuda.drop_capture(self._stream)
            return f"no CUDA graph: {error.what}"
        stack.callback(self._cuda.free_graph, self._graph)
        return "in one CUDA graph"

    def _deserialize(self, file: Path) -> Any:
        runtime = self._trt.Runtime(self._log)
        engine = runtime.deserialize_cuda_engine(file.read_bytes())
        if engine is None:
            raise EngineError(
                "TensorRT cannot load the engine file.",
                got=self._said(),
                fix="compile the artifact again for this GPU",
            )
        return engine

    def _check_names(self) -> None:
        engine, mode = self._engine, self._trt.TensorIOMode
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        of = {side: [n for n in names if engine.get_tensor_mode(n) == side] for side in
              (mode.INPUT, mode.OUTPUT)}  # fmt: skip
        check_names(self.signature, [(n,) for n in of[mode.INPUT]], [(n,) for n in of[mode.OUTPUT]])

    def _layers(self) -> list[dict[str, Any]]:
        """One record a layer; of engines built without details only the name is known."""
        engine = self._engine or closed()
        inspector = engine.create_engine_inspector()
        text = inspector.get_engine_information(self._trt.LayerInformationFormat.JSON)
        layers = json.loads(text).get("Layers", [])
        return [layer if isinstance(layer, dict) else {"Name": layer} for layer in layers]

    def _operators(self, layers: Sequence[Mapping[str, float]]) -> tuple[OperatorTime, ...]:
        """Layers in the order in which they ran."""
        facts = {layer["Name"]: layer for layer in self._layers()}
        starts: dict[str, list[float]] = defaultdict(list)
        for times in layers:
            at = 0.0
            for name, duration in times.items():
                starts[name].append(at)
                at += duration
        return tuple(
            OperatorTime(
                operator=name,
                kind=facts.get(name, {}).get("LayerType", ""),
                device="gpu",
                durations=tuple(times[name] for times in layers),
                starts=tuple(starts[name]),
                nodes=tuple(NODE.findall(facts.get(name, {}).get("Metadata", ""))),
            )
            for name in layers[-1]
        )

    @contextlib.contextmanager
    def _events(self) -> Iterator[tuple[Any, Any]]:
        start, end = self._cuda.event(), self._cuda.event()
        try:
            yield start, end
        finally:
            self._cuda.free_event(start)
            self._cuda.free_event(end)

    @contextlib.contextmanager
    def _mapped_errors(self, doing: str) -> Iterator[None]:
        """The one place where TensorRT's exceptions become the SDK's."""
        try:
            yield
        except (RuntimeError, TypeError) as error:
            raise EngineError(f"TensorRT failed to {doing}: {error}", got=self._said()) from error

    def _said(self) -> str | None:
        """The errors that TensorRT logged since it was last asked."""
        said, self._log.errors = self._log.errors, []
        return " | ".join(dict.fromkeys(said)) or None


def _profiler(trt: Any) -> Any:
    """A profiler of the library's own kind that keeps each layer's time of one call."""

    class LayerTimes(trt.IProfiler):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProfiler.__init__(self)
            self.times: dict[str, float] = {}

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            self.times[layer_name] = self.times.get(layer_name, 0.0) + ms * 1e3

        def take(self) -> dict[str, float]:
            """Layer -> microseconds, and forget them."""
            times, self.times = self.times, {}
            return times

    return LayerTimes()
