"""Stand-ins for `cuda.bindings.runtime` and `tensorrt_rtx`: they note calls and move real data.

Device memory is the host's, a stream runs at once, a graph keeps what was queued while it was
recorded. The engine adds its inputs up. So they show in which order a session calls, and whether
each byte arrives; what a GPU does they do not show.
"""

# ruff: noqa: N802, N815  # the names are CUDA's and TensorRT's

from __future__ import annotations

import ctypes
import enum
import json
from collections import Counter
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np

Status = enum.Enum(
    "Status", {"cudaSuccess": 0, "cudaErrorMemoryAllocation": 2, "cudaErrorLaunch": 719}
)


class CudaRuntime:
    """The functions of the CUDA runtime that the SDK calls. `fails` maps a name to its status."""

    cudaStreamNonBlocking = 1
    cudaMemcpyKind = SimpleNamespace(cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2)
    cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)
    cudaDeviceAttr = SimpleNamespace(
        cudaDevAttrComputeCapabilityMajor=75, cudaDevAttrComputeCapabilityMinor=76
    )

    def __init__(self, capability: tuple[int, int] = (8, 9)) -> None:
        self.capability = capability
        self.calls: Counter[str] = Counter()
        self.live: dict[int, Any] = {}
        self.fails: dict[str, Status] = {}
        self.recording: list[Callable[[], None]] | None = None

    def queue(self, work: Callable[[], None]) -> None:
        """Run now, or keep for the graph that is being recorded."""
        if self.recording is None:
            work()
        else:
            self.recording.append(work)

    def _did(self, name: str, *values: Any) -> tuple[Any, ...]:
        self.calls[name] += 1
        return (self.fails.get(name, Status.cudaSuccess), *values)

    def _new(self, name: str, thing: Any) -> tuple[Any, ...]:
        answer = self._did(name, id(thing))
        if answer[0] is Status.cudaSuccess:
            self.live[id(thing)] = thing
        return answer

    def _memory(self, name: str, size: int) -> tuple[Any, ...]:
        memory = (ctypes.c_byte * size)()
        address = ctypes.addressof(memory)
        answer = self._did(name, address)
        if answer[0] is Status.cudaSuccess:
            self.live[address] = memory
        return answer

    def _free(self, name: str, handle: int) -> tuple[Any, ...]:
        del self.live[handle]
        return self._did(name)

    def cudaGetDeviceCount(self) -> tuple[Any, ...]:
        return self._did("cudaGetDeviceCount", 1)

    def cudaDeviceGetAttribute(self, attribute: int, _device: int) -> tuple[Any, ...]:
        return self._did("cudaDeviceGetAttribute", self.capability[attribute - 75])

    def cudaGetErrorString(self, status: Status) -> tuple[Any, ...]:
        return Status.cudaSuccess, status.name.encode()

    def cudaGetLastError(self) -> tuple[Any, ...]:
        return self._did("cudaGetLastError")

    def cudaMalloc(self, size: int) -> tuple[Any, ...]:
        return self._memory("cudaMalloc", size)

    def cudaMallocHost(self, size: int) -> tuple[Any, ...]:
        return self._memory("cudaMallocHost", size)

    def cudaFree(self, address: int) -> tuple[Any, ...]:
        return self._free("cudaFree", address)

    def cudaFreeHost(self, address: int) -> tuple[Any, ...]:
        return self._free("cudaFreeHost", address)

    def cudaStreamCreateWithFlags(self, _flags: int) -> tuple[Any, ...]:
        return self._new("cudaStreamCreateWithFlags", object())

    def cudaStreamDestroy(self, stream: int) -> tuple[Any, ...]:
        return self._free("cudaStreamDestroy", stream)

    def cudaStreamSynchronize(self, _stream: int) -> tuple[Any, ...]:
        return self._did("cudaStreamSynchronize")

    def cudaMemcpyAsync(self, to: int, of: int, size: int, *_: Any) -> tuple[Any, ...]:
        self.queue(lambda: ctypes.memmove(to, of, size) and None)
        return self._did("cudaMemcpyAsync")

    def cudaStreamBeginCapture(self, *_: Any) -> tuple[Any, ...]:
        self.recording = []
        return self._did("cudaStreamBeginCapture")

    def cudaStreamEndCapture(self, _stream: int) -> tuple[Any, ...]:
        work, self.recording = self.recording, None
        if work is None:
            return Status.cudaErrorLaunch, None
        return self._new("cudaStreamEndCapture", work)

    def cudaGraphInstantiate(self, graph: int, _flags: int) -> tuple[Any, ...]:
        return self._new("cudaGraphInstantiate", list(self.live[graph]))

    def cudaGraphDestroy(self, graph: int) -> tuple[Any, ...]:
        return self._free("cudaGraphDestroy", graph)

    def cudaGraphLaunch(self, graph: int, _stream: int) -> tuple[Any, ...]:
        for work in self.live[graph]:
            work()
        return self._did("cudaGraphLaunch")

    def cudaGraphExecDestroy(self, graph: int) -> tuple[Any, ...]:
        return self._free("cudaGraphExecDestroy", graph)

    def cudaEventCreate(self) -> tuple[Any, ...]:
        return self._new("cudaEventCreate", object())

    def cudaEventRecord(self, *_: Any) -> tuple[Any, ...]:
        return self._did("cudaEventRecord")

    def cudaEventElapsedTime(self, *_: Any) -> tuple[Any, ...]:
        return self._did("cudaEventElapsedTime", 0.5)

    def cudaEventDestroy(self, event: int) -> tuple[Any, ...]:
        return self._free("cudaEventDestroy", event)


class _Logger:
    Severity = enum.Enum("Severity", "INTERNAL_ERROR ERROR WARNING")


class TensorRt:
    """The part of the library's API that a session uses; `Engine` is what every file holds."""

    ILogger = _Logger
    IProfiler = type("IProfiler", (), {})
    TensorIOMode = enum.Enum("TensorIOMode", "INPUT OUTPUT")
    LayerInformationFormat = enum.Enum("LayerInformationFormat", "ONELINE JSON")

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def Runtime(self, log: Any) -> Any:
        return SimpleNamespace(deserialize_cuda_engine=lambda data: self._load(log, data))

    def _load(self, log: Any, data: bytes) -> Engine | None:
        if data == b"engine":
            return self.engine
        log.log(_Logger.Severity.WARNING, "this does not matter")
        log.log(_Logger.Severity.ERROR, "the magic tag does not match")
        return None


LAYERS = [
    {"Name": "sum", "LayerType": "ElementWise", "TacticName": "add_f32",
     "Metadata": "[ONNX Layer: node_add]\x1e[ONNX Layer: node_cast]"},
    "reformat",
]  # fmt: skip


class Engine:
    """Inputs `a` and `b`, and their sum `y`, all fp32 of one shape of which axis 0 may vary."""

    num_io_tensors = 3

    def __init__(self, cuda: CudaRuntime, capturable: bool = True) -> None:
        self.cuda, self.capturable = cuda, capturable
        self.contexts: list[Context] = []
        self.runs = True

    def get_tensor_name(self, index: int) -> str:
        return "aby"[index]

    def get_tensor_mode(self, name: str) -> enum.Enum:
        return TensorRt.TensorIOMode.OUTPUT if name == "y" else TensorRt.TensorIOMode.INPUT

    def create_execution_context(self) -> Context:
        self.contexts.append(Context(self))
        return self.contexts[-1]

    def create_engine_inspector(self) -> Any:
        text = json.dumps({"Layers": LAYERS})
        return SimpleNamespace(get_engine_information=lambda _: text)


class Context:
    """Notes shapes and addresses, and adds up what is at them."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.profiler: Any = None
        self.enqueue_emits_profile = False

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shapes[name] = shape
        return shape[0] <= 4

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return True

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self.shapes["a" if name == "y" else name]

    def get_max_output_size(self, _name: str) -> int:
        return 4 * int(np.prod(self.shapes["a"]))

    def is_stream_capturable(self, _stream: int) -> bool:
        return self.engine.capturable

    def execute_async_v3(self, _stream: int) -> bool:
        if not self.engine.runs:
            return False
        self.engine.cuda.calls["execute_async_v3"] += 1
        self.engine.cuda.queue(self._add)
        if self.profiler is not None:
            self.profiler.report_layer_time("sum", 0.25)
            self.profiler.report_layer_time("reformat", 0.125)
        return True

    def _add(self) -> None:
        a, b, y = (self._array(name) for name in "aby")
        np.add(a, b, out=y)

    def _array(self, name: str) -> Any:
        shape = self.get_tensor_shape(name)
        count = int(np.prod(shape))
        memory = (ctypes.c_float * count).from_address(self.addresses[name])
        return np.frombuffer(memory, np.float32).reshape(shape)
