"""torch, the reference engine: interprets `program.json` on the CPU or on CUDA. Thread-safe."""

from __future__ import annotations

import contextlib
import copy
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sdk.errors import CorruptArtifactError, EngineError, SignatureMismatchError
from sdk.extras import installed, require
from sdk.runtimes.session import (
    EngineProfile,
    OperatorTime,
    Placement,
    Run,
    Session,
    Stopwatch,
    call_times,
    closed,
    fill,
    watch,
    without_engine,
)
from sdk.signature import Array, Signature
from sdk.structure import FIX
from sdk.target import Availability, DeviceSupport, Target
from sdk.torch_operators import operator_named

# What an operator raises on arguments that it cannot take, and Python on data of another form.
FAILURES = (RuntimeError, TypeError, ValueError, LookupError, ArithmeticError, AttributeError,
            AssertionError, MemoryError)  # fmt: skip
PRECISIONS = ("fp32", "fp16", "bf16", "int8", "w8", "int4", "int2")

NOTES = (
    "The reference engine is an interpreter in Python: its engine overhead is the fetching of "
    "arguments between operators.",
)


def probe() -> Availability:
    """Version and devices of the installed torch."""
    if not installed("torch"):
        return Availability(reason="torch is not installed", fix="pip install 'edge-sdk[torch]'")
    torch = _torch()
    devices = ("cpu", "gpu") if torch.cuda.is_available() else ("cpu",)
    return Availability(
        torch.__version__, {device: DeviceSupport(PRECISIONS) for device in devices}
    )


def open_session(file: Path, signature: Signature, target: Target, *, threads: int) -> TorchSession:
    """Load `file` and the weights beside it for `target` with `threads` threads."""
    return TorchSession(file, signature, target, threads)


class TorchSession:
    """Runs the graph node by node and drops each value after its last use."""

    def __init__(self, file: Path, signature: Signature, target: Target, threads: int) -> None:
        torch = _torch()
        self.signature = signature
        self._device = torch.device("cuda" if target.device == "gpu" else "cpu")
        self._target = target
        torch.set_num_threads(threads)
        graph = _read(file)
        _check_counts(graph, signature)
        self._weights = self._load_weights(file.with_name("weights.safetensors"), graph["weights"])
        with _usable(file):
            self._inputs = list(zip(map(_name, graph["inputs"]), signature.inputs, strict=True))
            self._steps = [_step(node, self._device) for node in graph["nodes"]]
            self._outputs = [_argument(value, self._device) for value in graph["outputs"]]
            self._last_use = _last_uses(self._steps, self._outputs)

    def run(
        self, feed: Mapping[str, Array], outputs: Mapping[str, Array] | None = None
    ) -> dict[str, Array]:
        """Run once; outputs are fresh NumPy arrays."""
        return fill(self._run(feed), outputs)

    def placement(self) -> list[Placement]:
        """Every operator runs on the session's device."""
        if self._steps is CLOSED:
            closed()
        device = self._target.device
        return [
            Placement(name, kind, device, f"torch {kind}", "asked for", (name,))
            for name, kind, *_ in self._steps
        ]

    def profile(
        self,
        feed: Mapping[str, Array],
        *,
        runs: int,
        through: Callable[[Session], Run] | None = None,
    ) -> EngineProfile:
        """Times around each operator; on CUDA the device is waited for behind each of them."""
        twin = copy.copy(self)
        steps = [self._timed(function) for _, _, function, *_ in self._steps]
        twin._steps = [
            (name, kind, timed, args, kwargs)
            for (name, kind, _, args, kwargs), timed in zip(self._steps, steps, strict=True)
        ]
        twin._interpret = engine = Stopwatch(twin._interpret)  # type: ignore[method-assign]
        twin._run = binding = Stopwatch(twin._run)  # type: ignore[method-assign]
        call = through(twin) if through else twin.run
        calls = watch(call, feed, runs)
        begins = engine.spans[-runs:]
        spans = [(start / 1e3, (end - start) / 1e3) for start, end in begins]
        return EngineProfile(
            call_times(calls, binding.spans, spans),
            tuple(
                self._operator(step, timed.spans[-runs:], begins)
                for step, timed in zip(self._steps, steps, strict=True)
            ),
            without_engine(call, feed, binding, lambda: self.run(feed)),
            NOTES,
        )

    def close(self) -> None:
        """Release the weights."""
        self._steps = CLOSED  # before the weights, which a call reads first
        self._weights = {}

    def _load_weights(self, file: Path, names: Mapping[str, Any]) -> dict[str, Any]:
        safetensors = require("safetensors.torch", purpose="The engine 'torch'")
        failure = require("safetensors", purpose="The engine 'torch'").SafetensorError
        with _usable(file, failure):
            tensors = safetensors.load(file.read_bytes())
            return {name: _stored(tensors, of).to(self._device) for name, of in names.items()}

    def _run(self, feed: Mapping[str, Array]) -> dict[str, Array]:
        torch = _torch()
        values = dict(self._weights)
        for name, spec in self._inputs:
            values[name] = torch.from_numpy(np.array(feed[spec.name])).to(self._device)
        self._interpret(values)
        try:
            return {
                spec.name: np.array(_resolve(value, values).cpu().numpy())
                for spec, value in zip(self.signature.outputs, self._outputs, strict=True)
            }
        except FAILURES as error:
            raise EngineError(f"torch gave no such outputs: {error}") from error

    def _interpret(self, values: dict[str, Any]) -> None:
        """Add the value of every step to `values`, and drop those that nothing needs any more."""
        try:
            with _torch().inference_mode():
                for index, (name, _, function, args, kwargs) in enumerate(self._steps):
                    values[name] = _apply(function, args, kwargs, values)
                    for dead in self._last_use.get(index, ()):
                        del values[dead]
        except FAILURES as error:
            raise EngineError(f"torch failed while running {name!r}: {error}") from error

    def _timed(self, function: Callable[..., Any]) -> Stopwatch:
        if self._device.type != "cuda":
            return Stopwatch(function)

        def finished(*args: Any, **kwargs: Any) -> Any:
            result = function(*args, **kwargs)
            _torch().cuda.synchronize()
            return result

        return Stopwatch(finished)

    def _operator(
        self, step: Step, spans: list[tuple[int, int]], begins: list[tuple[int, int]]
    ) -> OperatorTime:
        return OperatorTime(
            operator=step[0],
            kind=step[1],
            device=self._target.device,
            durations=tuple((end - start) / 1e3 for start, end in spans),
            starts=tuple(
                (start - begin) / 1e3 for (start, _), (begin, _) in zip(spans, begins, strict=True)
            ),
            nodes=(step[0],),
        )


Step = tuple[str, str, Callable[..., Any], list[Any], dict[str, Any]]
CLOSED: list[Step] = [("closed", "closed", closed, [], {})]


class _Value(str):
    """The name of a value of the graph, as opposed to a text argument."""

    __slots__ = ()


def _torch() -> Any:
    return require("torch", purpose="The engine 'torch'")


@contextlib.contextmanager
def _usable(file: Path, *more: type[Exception]) -> Iterator[None]:
    """What a hostile or broken file makes fail in here becomes a CorruptArtifactError."""
    failures: tuple[type[Exception], ...] = (*FAILURES, OSError, *more)
    try:
        yield
    except failures as error:
        raise CorruptArtifactError(f"{file.name} cannot be used.", got=error, fix=FIX) from error


def _read(file: Path) -> dict[str, Any]:
    with _usable(file):
        graph = json.loads(file.read_bytes())
        kinds = {"inputs": list, "weights": dict, "nodes": list, "outputs": list}
        if {key: type(value) for key, value in graph.items()} != kinds:
            raise ValueError(f"expected the keys {sorted(kinds)}")
        return dict(graph)


def _stored(tensors: Mapping[str, Any], name: Any) -> Any:
    """A tensor by name; by name and bits, signed integers that share bytes, the first lowest."""
    if isinstance(name, str):
        return tensors[name]
    name, bits = name
    if bits not in (2, 4):
        raise ValueError(f"integers of {bits} bits")
    torch = _torch()
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8)
    parts = tensors[name].unsqueeze(-1) >> shifts & (1 << bits) - 1
    values = parts.flatten(-2).to(torch.int8)
    return torch.where(values < 1 << bits - 1, values, values - (1 << bits))


def _check_counts(graph: Mapping[str, Any], signature: Signature) -> None:
    for role, specs in (("inputs", signature.inputs), ("outputs", signature.outputs)):
        if len(graph[role]) != len(specs):
            raise SignatureMismatchError(
                f"The engine file's {role} are not those of the manifest.",
                expected=[spec.name for spec in specs],
                got=f"{len(graph[role])} {role}",
                fix=FIX,
            )


def _name(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"a name is text, not {type(value).__name__}")
    return value


def _step(node: Any, device: Any) -> Step:
    name, kind = _name(node["name"]), _name(node["op"])
    kwargs = {key: _argument(value, device) for key, value in node["kwargs"].items()}
    return name, kind, _function(kind), [_argument(v, device) for v in node["args"]], kwargs


def _function(kind: str) -> Callable[..., Any]:
    """The operator named `kind`; CorruptArtifactError where a program may not name it."""
    found = operator_named(kind)
    if found is None:
        raise CorruptArtifactError(
            f"program.json names the operator {kind[:80]!r}, which is not allowed."
        )
    return found


def _argument(value: Any, device: Any) -> Any:
    """JSON to an argument; names of values become `_Value`."""
    if isinstance(value, list):
        return [_argument(item, device) for item in value]
    if not isinstance(value, dict):
        return value
    ((kind, inner),) = value.items()
    if kind == "node":
        return _Value(inner)
    if kind == "device":
        return device
    if kind == "float":
        return float(inner)
    found = getattr(_torch(), inner)
    if type(found).__name__ != kind or kind not in ("dtype", "memory_format", "layout"):
        raise ValueError(f"unusable argument {value}")
    return found


def _apply(
    function: Callable[..., Any], args: list[Any], kwargs: dict[str, Any], values: dict[str, Any]
) -> Any:
    filled = [_resolve(value, values) for value in args]
    return function(*filled, **{key: _resolve(value, values) for key, value in kwargs.items()})


def _resolve(value: Any, values: Mapping[str, Any]) -> Any:
    if isinstance(value, _Value):
        return values[value]
    if isinstance(value, list):
        return [_resolve(item, values) for item in value]
    return value


def _names(value: Any) -> list[str]:
    if isinstance(value, _Value):
        return [value]
    return [name for item in value for name in _names(item)] if isinstance(value, list) else []


def _last_uses(steps: list[Step], outputs: list[Any]) -> dict[int, list[str]]:
    """Step index -> values that nothing needs behind it."""
    made = {step[0] for step in steps}
    last: dict[str, int] = {}
    for index, (name, _, _, args, kwargs) in enumerate(steps):
        used = [n for value in (*args, *kwargs.values()) for n in _names(value)]
        last.update(dict.fromkeys((name, *(n for n in used if n in made)), index))
    for name in _names(outputs):
        last.pop(name, None)
    dead: dict[int, list[str]] = {}
    for name, index in last.items():
        dead.setdefault(index, []).append(name)
    return dead
