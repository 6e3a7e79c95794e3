"""Stand-in for an engine whose device is not here: ONNX Runtime runs the ONNX model it is given.

It shows that the model handed to the engine computes what the program computes, at the same
precisions and on the same quantized values. It does not show what the engine makes of that model.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any, NoReturn

import numpy as np
import onnx

from sdk.compilers.bfloat16 import emulate_bfloat16
from sdk.compilers.planned import Planned
from sdk.errors import EngineError, UnsupportedOperatorError
from sdk.extras import require
from sdk.signature import Array, Signature
from sdk.target import Target

REASON = "the engine puts all on the {} or refuses the model; its kernels are only known on one"


class OnnxProxy:
    """A session for the gates of a compile. Its times are ONNX Runtime's and mean nothing."""

    def __init__(self, model: bytes, signature: Signature, target: Target, threads: int) -> None:
        self.signature = signature
        proto = onnx.load_from_string(model)
        self._rows = [_planned(node, target) for node in proto.graph.node]
        self._names = [spec.name for spec in signature.outputs]
        with mapped_errors():
            self._session = _session(emulate_bfloat16(proto), threads)

    def run(
        self, feed: Mapping[str, Array], outputs: Mapping[str, Array] | None = None
    ) -> dict[str, Array]:
        """Run once; fresh arrays, or the given ones, filled."""
        if self._session is None:
            raise EngineError("The session is closed.", fix="open it again")
        with mapped_errors():
            results = dict(zip(self._names, self._session.run(self._names, feed), strict=True))
        for name, buffer in (outputs or {}).items():
            np.copyto(buffer, results[name])
        return {**results, **(outputs or {})}

    def placement(self) -> list[Planned]:
        """One row for each node of the model."""
        return list(self._rows)

    def profile(self, *_: Any, **__: Any) -> NoReturn:
        """Raises EngineError: nothing here can be timed."""
        raise EngineError("The stand-in cannot be timed.", fix="profile on the device")

    def close(self) -> None:
        """Release the session."""
        self._session = None


def _planned(node: onnx.NodeProto, target: Target) -> Planned:
    reason = REASON.format(target.device.upper())
    return Planned(node.name, node.op_type, target.device, "", reason, (node.name,))


def _session(model: onnx.ModelProto, threads: int) -> Any:
    ort = require("onnxruntime", purpose="Checking a build without its device")
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    # Its passes fuse int8 pairs into kernels that round at other places, and already the basic ones
    # of 1.32 get fp8 pairs wrong (a SegFormer's output was off by all of its spread).
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


@contextlib.contextmanager
def mapped_errors() -> Iterator[None]:
    """The one place where the stand-in's exceptions become the SDK's."""
    state = require("onnxruntime.capi.onnxruntime_pybind11_state", purpose="ONNX Runtime")
    own = (state.Fail, state.InvalidArgument, state.InvalidGraph, state.NotImplemented,
           state.RuntimeException)  # fmt: skip
    try:
        yield
    except (*own, ValueError, RuntimeError) as error:
        text = str(error).splitlines()[0]
        raise _unchecked(text) from error


def _unchecked(text: str) -> EngineError | UnsupportedOperatorError:
    what = "The build cannot be checked without its device: ONNX Runtime does not run it."
    if "NOT_IMPLEMENTED" in text:
        return UnsupportedOperatorError(
            what, got=text, fix="compile on a machine with the device, or at another precision"
        )
    return EngineError(what, got=text, fix="compile on a machine with the device")
