"""ONNX Runtime: loads `model.onnx`. Sessions are thread-safe."""

from __future__ import annotations

import contextlib
import json
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sdk.errors import EngineError, UnsupportedOperatorError
from sdk.extras import installed, require
from sdk.runtimes.session import EngineProfile, OperatorTime, Placement, check_names, fill
from sdk.signature import Array, Signature
from sdk.target import Availability, Target

PROVIDERS = {"cpu": "CPUExecutionProvider", "gpu": "CUDAExecutionProvider"}
DEVICE_OF = {provider: device for device, provider in PROVIDERS.items()}
PRECISIONS = ("fp32", "fp16", "int8")  # its CPU provider has no bf16 convolutions


def probe() -> Availability:
    """Version and devices of the installed ONNX Runtime."""
    if not installed("onnxruntime"):
        return Availability(
            False,
            False,
            reason="onnxruntime is not installed",
            fix="pip install 'edge-sdk[onnxruntime]'",
        )
    ort = _ort()
    present = ort.get_available_providers()
    devices = tuple(device for device, name in PROVIDERS.items() if name in present)
    return Availability(True, True, ort.__version__, devices, PRECISIONS)


def open_session(
    file: Path, signature: Signature, target: Target, *, threads: int
) -> OnnxRuntimeSession:
    """Load `file` for `target` with `threads` intra-operator threads."""
    return OnnxRuntimeSession(file, signature, target, threads)


class OnnxRuntimeSession:
    """One `InferenceSession`; a second, profiling one is made when it is asked for."""

    def __init__(self, file: Path, signature: Signature, target: Target, threads: int) -> None:
        self.signature = signature
        self._file, self._target, self._threads = file, target, threads
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

    def placement(self) -> list[Placement]:
        """Read from one profiled run on zeros: ONNX Runtime does not tell otherwise."""
        profile = self.profile(self.signature.zeros(), runs=1)
        wanted = self._target.device
        return [
            Placement(
                operator=row.operator,
                kind=row.kind,
                device=row.device,
                kernel=row.kind,
                reason="asked for" if row.device == wanted else f"{wanted} has no kernel for it",
                nodes=row.nodes,
            )
            for row in profile.operators
        ]

    def profile(self, feed: Mapping[str, Array], *, runs: int) -> EngineProfile:
        """Per-operator times from ONNX Runtime's profiler, after as many runs to warm up."""
        with tempfile.TemporaryDirectory() as folder:
            session = self._create(profile_prefix=str(Path(folder) / "run"))
            walls = []
            for _ in range(2 * runs):
                start = time.perf_counter_ns()
                session.run(self._output_names, feed)
                walls.append((time.perf_counter_ns() - start) / 1e3)
            events = json.loads(Path(session.end_profiling()).read_text())
        return _summarise(events, walls[runs:])

    def close(self) -> None:
        """Release the session."""
        del self._session
        self._run = _closed

    def _create(self, profile_prefix: str | None = None) -> Any:
        ort = _ort()
        options = ort.SessionOptions()
        options.intra_op_num_threads = self._threads
        options.log_severity_level = 3
        if profile_prefix is not None:
            options.enable_profiling = True
            options.profile_file_prefix = profile_prefix
        providers = [PROVIDERS[self._target.device]]
        with mapped_errors():
            return ort.InferenceSession(self._file, options, providers=providers)

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


def _closed(*_: object) -> None:
    raise EngineError("The session is closed.", fix="load the artifact again")


def _summarise(events: list[dict[str, Any]], walls: list[float]) -> EngineProfile:
    """Kernel events per node, and the whole-run events, of the second half of the runs."""
    runs = len(walls)
    kernels: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            kernels[event["name"].removesuffix("_kernel_time")].append(event)
    whole = [event for event in events if event["name"] == "model_run"][-runs:]
    origin = whole[-1]["ts"]
    return EngineProfile(
        operators=tuple(_operator(name, rows[-runs:], origin) for name, rows in kernels.items()),
        wall=statistics.median(walls),
        engine=statistics.median(event["dur"] for event in whole),
        runs=runs,
    )


def _operator(name: str, rows: list[dict[str, Any]], origin: int) -> OperatorTime:
    arguments = rows[-1]["args"]
    provider = arguments.get("provider", "CPUExecutionProvider")
    return OperatorTime(
        operator=name,
        kind=arguments["op_name"],
        device=DEVICE_OF.get(provider, provider),
        microseconds=statistics.median(row["dur"] for row in rows),
        start=float(rows[-1]["ts"] - origin),
        nodes=(name,),
    )
