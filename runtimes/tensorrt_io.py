"""The buffers of a TensorRT session: allocated once, for the largest shapes of its profile."""

from __future__ import annotations

import contextlib
import ctypes
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from sdk.errors import EngineError
from sdk.runtimes.session import put
from sdk.runtimes.tensorrt_cuda import Cuda
from sdk.signature import Array, Dim, Signature, TensorSpec


@dataclass(frozen=True)
class Port:
    """One input or output: pinned host memory, device memory, and the bytes that both hold."""

    spec: TensorSpec
    host: int
    device: int
    size: int

    @property
    def dynamic(self) -> bool:
        """Whether its shape varies."""
        return any(isinstance(dim, Dim) for dim in self.spec.shape)

    def view(self, shape: tuple[int, ...]) -> Array:
        """The host memory as an array of `shape`."""
        count = math.prod(shape) * np.dtype(self.spec.dtype).itemsize
        memory = (ctypes.c_uint8 * count).from_address(self.host)
        return np.ctypeslib.as_array(memory).view(self.spec.dtype).reshape(shape)


class Ports:
    """All buffers of one execution context, registered with it; freed by `stack`."""

    def __init__(
        self, context: Any, signature: Signature, cuda: Cuda, stack: contextlib.ExitStack
    ) -> None:
        self._context, self._cuda, self._stack = context, cuda, stack
        _take_largest(context, signature)
        self.inputs = tuple(self._port(spec, _bytes(spec)) for spec in signature.inputs)
        self.outputs = tuple(self._port(spec, self._bound(spec)) for spec in signature.outputs)
        self.attach(context, signature)

    def attach(self, context: Any, signature: Signature) -> None:
        """Let a context of the engine use these buffers."""
        _take_largest(context, signature)
        for port in (*self.inputs, *self.outputs):
            if not context.set_tensor_address(port.spec.name, port.device):
                raise EngineError(f"TensorRT refuses the buffer of {port.spec.name!r}.")

    def put(self, feed: Mapping[str, Array], context: Any) -> None:
        """Copy the inputs into pinned memory, and tell the context the shapes that vary."""
        for port in self.inputs:
            array = feed[port.spec.name]
            fits = array.nbytes <= port.size  # what is written beyond would be other memory
            if port.dynamic:
                fits = fits and context.set_input_shape(port.spec.name, array.shape)
            if not fits:
                raise EngineError(
                    f"TensorRT refuses the shape of the input {port.spec.name!r}.",
                    expected=str(port.spec),
                    got=list(array.shape),
                )
            np.copyto(port.view(array.shape), array)

    def take(self, context: Any, outputs: Mapping[str, Array] | None) -> dict[str, Array]:
        """Copies of the outputs, or the caller's buffers, filled."""
        return {
            port.spec.name: _take(port, _shape_of(context, port), outputs) for port in self.outputs
        }

    def copies_in(self, context: Any, stream: Any) -> None:
        """Queue the copies of this call's inputs to the device."""
        for port in self.inputs:
            self._cuda.copy_in(port.device, port.host, _used(context, port), stream)

    def copies_out(self, context: Any, stream: Any) -> None:
        """Queue the copies of this call's outputs to the host."""
        for port in self.outputs:
            self._cuda.copy_out(port.host, port.device, _used(context, port), stream)

    def _port(self, spec: TensorSpec, size: int) -> Port:
        host, device = self._cuda.host_buffer(size), 0
        self._stack.callback(self._cuda.free_host, host)
        device = self._cuda.device_buffer(size)
        self._stack.callback(self._cuda.free_device, device)
        ctypes.memset(host, 0, size)
        return Port(spec, host, device, size)

    def _bound(self, spec: TensorSpec) -> int:
        """Bytes of the output at the largest inputs."""
        size = int(self._context.get_max_output_size(spec.name))
        if size < 0:
            raise EngineError(
                f"The size of the output {spec.name!r} depends on the values of the inputs.",
                fix="compile for 'onnxruntime', or return an output of a fixed size",
            )
        return size


def _take_largest(context: Any, signature: Signature) -> None:
    for spec in signature.inputs:
        shape = tuple(_largest(dim) for dim in spec.shape)
        if not context.set_input_shape(spec.name, shape):
            raise EngineError(
                f"The engine does not take the largest shape of {spec.name!r}.",
                got=list(shape),
                fix="compile the artifact again",
            )


def _largest(dim: int | Dim) -> int:
    return dim if isinstance(dim, int) else dim.max


def _bytes(spec: TensorSpec) -> int:
    return math.prod(map(_largest, spec.shape)) * np.dtype(spec.dtype).itemsize


def _shape_of(context: Any, port: Port) -> tuple[int, ...]:
    return tuple(int(size) for size in context.get_tensor_shape(port.spec.name))


def _used(context: Any, port: Port) -> int:
    return math.prod(_shape_of(context, port)) * np.dtype(port.spec.dtype).itemsize


def _take(port: Port, shape: tuple[int, ...], outputs: Mapping[str, Array] | None) -> Array:
    data = port.view(shape)
    if outputs is None or port.spec.name not in outputs:
        return data.copy()
    return put(data, outputs[port.spec.name], port.spec.name)
