"""The calls of the CUDA runtime that a TensorRT session makes, with CUDA's errors as ours.

They go through NVIDIA's own bindings, `cuda.bindings.runtime`. Where there is no GPU the tests put
a recorder in their place, whose device memory is the host's: they run nothing on a GPU.
"""

from __future__ import annotations

from typing import Any

from sdk.errors import EngineError
from sdk.extras import require
from sdk.nvidia import why


class Cuda:
    """Memory, one stream's copies, and graphs. Addresses are integers, sizes are bytes."""

    def __init__(self, runtime: Any | None = None) -> None:
        self._cuda = runtime or require("cuda.bindings.runtime", purpose="Running on a GPU")

    def device_buffer(self, size: int) -> int:
        """Allocate on the GPU."""
        return int(self._call("cudaMalloc", max(size, 1)))

    def host_buffer(self, size: int) -> int:
        """Allocate host memory that stays in place, so that copies need not wait."""
        return int(self._call("cudaMallocHost", max(size, 1)))

    def free_device(self, address: int) -> None:
        """Release what `device_buffer` gave."""
        self._call("cudaFree", address)

    def free_host(self, address: int) -> None:
        """Release what `host_buffer` gave."""
        self._call("cudaFreeHost", address)

    def stream(self) -> Any:
        """A stream that does not wait for the default one."""
        return self._call("cudaStreamCreateWithFlags", self._cuda.cudaStreamNonBlocking)

    def free_stream(self, stream: Any) -> None:
        """Release a stream."""
        self._call("cudaStreamDestroy", stream)

    def copy_in(self, device: int, host: int, size: int, stream: Any) -> None:
        """Host to device, in the stream's order."""
        self._copy(device, host, size, "cudaMemcpyHostToDevice", stream)

    def copy_out(self, host: int, device: int, size: int, stream: Any) -> None:
        """Device to host, in the stream's order."""
        self._copy(host, device, size, "cudaMemcpyDeviceToHost", stream)

    def synchronize(self, stream: Any) -> None:
        """Wait until the stream is done; errors of its work are raised here."""
        self._call("cudaStreamSynchronize", stream)

    def begin_capture(self, stream: Any) -> None:
        """From here on the stream records instead of running."""
        mode = self._cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._call("cudaStreamBeginCapture", stream, mode)

    def end_capture(self, stream: Any) -> Any:
        """What was recorded, ready to be launched."""
        graph = self._call("cudaStreamEndCapture", stream)
        try:
            return self._call("cudaGraphInstantiate", graph, 0)
        finally:
            self._call("cudaGraphDestroy", graph)

    def drop_capture(self, stream: Any) -> None:
        """Leave a capture that failed, whatever state it is in, and forget its error."""
        status, graph = self._cuda.cudaStreamEndCapture(stream)
        if not status.value and graph is not None:
            self._call("cudaGraphDestroy", graph)
        self._cuda.cudaGetLastError()

    def launch(self, graph: Any, stream: Any) -> None:
        """Run a recorded graph."""
        self._call("cudaGraphLaunch", graph, stream)

    def free_graph(self, graph: Any) -> None:
        """Release a graph."""
        self._call("cudaGraphExecDestroy", graph)

    def event(self) -> Any:
        """A mark in a stream, with a time."""
        return self._call("cudaEventCreate")

    def record(self, event: Any, stream: Any) -> None:
        """Put the mark behind what is in the stream."""
        self._call("cudaEventRecord", event, stream)

    def microseconds(self, start: Any, end: Any) -> float:
        """Between two marks that have passed."""
        return float(self._call("cudaEventElapsedTime", start, end)) * 1e3

    def free_event(self, event: Any) -> None:
        """Release a mark."""
        self._call("cudaEventDestroy", event)

    def _copy(self, to: int, of: int, size: int, kind: str, stream: Any) -> None:
        self._call(
            "cudaMemcpyAsync", to, of, size, getattr(self._cuda.cudaMemcpyKind, kind), stream
        )

    def _call(self, name: str, *args: Any) -> Any:
        status, *values = getattr(self._cuda, name)(*args)
        if status.value:
            raise self._failed(name, status)
        return values[0] if values else None

    def _failed(self, name: str, status: Any) -> EngineError:
        full = status.name == "cudaErrorMemoryAllocation"
        return EngineError(
            f"CUDA failed in {name}.",
            got=why(self._cuda, status),
            fix="free memory of the GPU, or compile with smaller dims" if full else None,
        )
