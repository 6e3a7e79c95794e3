"""What every engine's session offers, and the records that it returns."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from sdk.errors import SignatureMismatchError
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
    """Time of one operator, in microseconds, averaged over the profiled runs."""

    operator: str
    kind: str
    device: str
    microseconds: float
    start: float
    """Start within the run, in microseconds, of the last profiled run."""
    nodes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class EngineProfile:
    """One profiled session: per-operator times and the engine's own time around them."""

    operators: tuple[OperatorTime, ...]
    wall: float
    """Median wall time of the profiled calls, seen from Python, in microseconds."""
    engine: float
    """Time inside the engine by the engine's own clock, operators included, in microseconds."""
    runs: int
    notes: tuple[str, ...] = field(default=())


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

    def profile(self, feed: Mapping[str, Array], *, runs: int) -> EngineProfile:
        """Run with the engine's own profiler switched on."""
        ...

    def close(self) -> None:
        """Release the engine's memory. A closed session raises EngineError when run."""
        ...


def fill(results: dict[str, Array], outputs: Mapping[str, Array] | None) -> dict[str, Array]:
    """Copy results into the caller's buffers, where there are any."""
    if outputs is None:
        return results
    for name, buffer in outputs.items():
        buffer[...] = results[name]
    return {**results, **outputs}


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
