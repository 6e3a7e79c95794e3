"""What every engine's session offers, and the records that it returns."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, Protocol

import numpy as np

from sdk.errors import EngineError, InputError, SignatureMismatchError
from sdk.signature import Array, Signature


@dataclass(frozen=True, slots=True)
class Placement:
    """Where one operator of the engine's optimised graph runs."""

    operator: str
    """The engine's name of the operator."""
    kind: str
    device: str
    kernel: str
    """The engine's name of the implementation, where it tells."""
    reason: str
    nodes: tuple[str, ...] = ()
    """Names of the nodes of the engine file that were fused into it."""


@dataclass(frozen=True, slots=True)
class OperatorTime:
    """One operator in each profiled call, in microseconds; 0 where a call did not run it.

    Where an engine only tells the mean over the calls, every call has that mean.
    """

    operator: str
    kind: str
    device: str
    durations: tuple[float, ...]
    starts: tuple[float, ...]
    """Since the engine's run began."""
    nodes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class CallTime:
    """One profiled call, seen by three observers, in microseconds."""

    wall: float
    """The whole call, by the caller's clock."""
    binding: float
    """The engine's own Python function within it, by our clock around that function."""
    binding_start: float
    """Since the call began."""
    engine: float
    """The engine's run within that, by the engine's clock."""
    engine_start: float | None = None
    """Since the call began; None where the engine's clock has no origin that we know."""


@dataclass(frozen=True, slots=True)
class EngineProfile:
    """Profiled calls, and the operators within each of them."""

    calls: tuple[CallTime, ...]
    operators: tuple[OperatorTime, ...]
    framework: float
    """Microseconds of a call whose engine answers at once, measured apart (median)."""
    notes: tuple[str, ...] = ()
    """What the engine's profiler cannot see."""


Run = Callable[[Mapping[str, Array]], object]


class Session(Protocol):
    """A loaded engine file. `run` may be called from several threads at once."""

    signature: Signature

    def run(
        self, feed: Mapping[str, Array], outputs: Mapping[str, Array] | None = None
    ) -> dict[str, Array]:
        """Run once on a checked feed. Outputs are fresh arrays, or the given ones, filled."""
        ...

    def placement(self) -> list[Placement]:
        """Which operator runs where, with which kernel and why."""
        ...

    def profile(
        self,
        feed: Mapping[str, Array],
        *,
        runs: int,
        through: Callable[[Session], Run] | None = None,
    ) -> EngineProfile:
        """Call `runs` times with the engine's own profiler switched on.

        `through` makes the call to be timed from a session that profiles; default: its `run`.
        """
        ...

    def close(self) -> None:
        """Release the engine's memory. A closed session raises EngineError when run."""
        ...


class Stopwatch:
    """A function that notes when it was entered and left, in nanoseconds of `perf_counter_ns`."""

    def __init__(self, call: Callable[..., Any]) -> None:
        self._call = call
        self._answer: Any = None
        self.spans: list[tuple[int, int]] = []

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter_ns()
        self._answer = self._call(*args, **kwargs)
        self.spans.append((start, time.perf_counter_ns()))
        return self._answer

    def replay(self) -> None:
        """From now on give the last answer again, at once."""
        answer = self._answer
        self._call = lambda *_args, **_kwargs: answer


WARMUP = 10


def watch(
    call: Run, feed: Mapping[str, Array], runs: int, after: Callable[[], object] = lambda: None
) -> list[tuple[int, int]]:
    """Call at most `WARMUP` times to warm up, then `runs` times, with `after()` behind each call.

    Returns the spans of the last `runs` calls, without `after`.
    """
    watched = Stopwatch(call)
    for _ in range(warmup_calls(runs) + runs):
        watched(feed)
        after()
    return watched.spans[-runs:]


def warmup_calls(runs: int) -> int:
    """How many calls `watch` makes before the `runs` that it reports."""
    return min(runs, WARMUP)


def without_engine(
    call: Run, feed: Mapping[str, Array], binding: Stopwatch, between: Callable[[], object]
) -> float:
    """Median microseconds of `call` while `binding`, the engine's function in it, only replays.

    `between` runs the engine, untimed, so that the caches are as a real call leaves them.
    """
    runs, spans = len(binding.spans), binding.spans
    binding.spans = []
    binding.replay()
    times = [end - start for start, end in watch(call, feed, runs, between)]
    binding.spans = spans
    return statistics.median(times) / 1e3


def call_times(
    calls: Sequence[tuple[int, int]],
    bindings: Sequence[tuple[int, int]],
    engine: Sequence[tuple[float | None, float]],
) -> tuple[CallTime, ...]:
    """One record per call, from spans in nanoseconds and the engine's (start in us, us)."""
    return tuple(
        CallTime(
            wall=(end - start) / 1e3,
            binding=(left - entered) / 1e3,
            binding_start=(entered - start) / 1e3,
            engine=duration,
            engine_start=None if began is None else began - start / 1e3,
        )
        for (start, end), (entered, left), (began, duration) in zip(
            calls, bindings[-len(calls) :], engine[-len(calls) :], strict=True
        )
    )


def closed(*_: object) -> NoReturn:
    """What a session does once it was closed."""
    raise EngineError("The session is closed.", fix="load the artifact again")


def fill(results: dict[str, Array], outputs: Mapping[str, Array] | None) -> dict[str, Array]:
    """Copy results into the caller's buffers, where there are any."""
    if outputs is None:
        return results
    for name, buffer in outputs.items():
        put(results[name], buffer, name)
    return {**results, **outputs}


def put(result: Array, buffer: Array, name: str) -> Array:
    """Copy a result into a buffer of exactly its shape: NumPy alone would broadcast."""
    if buffer.shape != result.shape:
        raise InputError(
            f"The buffer for the output {name!r} does not fit.",
            expected=f"{result.dtype}{list(result.shape)}",
            got=f"{buffer.dtype}{list(buffer.shape)}",
        )
    np.copyto(buffer, result)
    return buffer


def check_names(
    signature: Signature, inputs: Sequence[Collection[str]], outputs: Sequence[Collection[str]]
) -> None:
    """Raise SignatureMismatchError unless each port of the engine has the signature's name.

    `inputs` and `outputs` give, in the engine's order, all names that a port answers to.
    """
    for role, specs, ports in (
        ("inputs", signature.inputs, inputs),
        ("outputs", signature.outputs, outputs),
    ):
        expected = [spec.name for spec in specs]
        if len(ports) != len(expected) or any(
            name not in port for name, port in zip(expected, ports, strict=True)
        ):
            raise SignatureMismatchError(
                f"The engine file's {role} are not those of the manifest.",
                expected=expected,
                got=[sorted(port) for port in ports],
                fix="compile the artifact again",
            )
