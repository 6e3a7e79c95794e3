"""Where a program runs: `engine[:device[:precision]]`, and whether that can be done here."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from sdk.errors import InputError

ENGINES = ("onnxruntime", "openvino", "tensorrt", "coreml", "torch")
DEVICES = ("cpu", "gpu", "npu")
FLOATS = ("fp32", "fp16", "bf16")
# Activations and weights on a grid: Q/DQ pairs in the program, calibrated on real inputs.
STATIC = ("int8", "a16w8", "fp8")
# Only the weights of linear and embedding layers on a grid (`pal`: a palette of 2**n values).
WEIGHT_ONLY = ("w8", "int4", "int2", "pal6", "pal4")
# The search among all of them.
AUTO = "auto"
PRECISIONS = (*FLOATS, *STATIC, *WEIGHT_ONLY, AUTO)
# What the parity gate of a compile runs on: the engine; the vendor's simulator of it, whose figures
# are right and whose times are not; our interpreter of the engine's saved file; another engine that
# runs the same intermediate file.
CHECKED_ON = ("engine", "simulator", "evaluator", "proxy")


@dataclass(frozen=True, slots=True)
class Target:
    """An engine, a device and a precision. `str(target)` and `Target.parse` are inverses."""

    engine: str
    device: str = "cpu"
    precision: str = "fp32"
    arch: str | None = None

    def __post_init__(self) -> None:
        _known("engine", self.engine, ENGINES)
        _known("device", self.device, DEVICES)
        _known("precision", self.precision, PRECISIONS)
        if self.arch is not None and not (self.arch and ":" not in self.arch):
            raise _unparsed(str(self))

    def __str__(self) -> str:
        text = f"{self.engine}:{self.device}:{self.precision}"
        return text if self.arch is None else f"{text}:{self.arch}"

    @classmethod
    def parse(cls, text: str | Target) -> Target:
        """Read `engine[:device[:precision[:arch]]]`; InputError names what is near."""
        if isinstance(text, Target):
            return text
        parts = text.split(":") if isinstance(text, str) else []
        if not 1 <= len(parts) <= 4 or not all(parts):
            raise _unparsed(text)
        return cls(*parts)

    def with_precision(self, precision: str) -> Target:
        """The same engine and device at another precision."""
        return replace(self, precision=precision)


@dataclass(frozen=True, slots=True)
class DeviceSupport:
    """What an engine can do for one kind of device on this machine."""

    precisions: tuple[str, ...] = ()
    compile: bool = True
    run: bool = True
    checked_on: str = "engine"
    """One of `CHECKED_ON`: what a compile here can check a build with."""
    reason: str | None = None
    """Why it cannot compile, run or be checked on the engine."""
    fix: str | None = None


@dataclass(frozen=True, slots=True)
class Availability:
    """What an engine can do on this machine; the answer of `probe()`, which never raises."""

    version: str | None = None
    devices: Mapping[str, DeviceSupport] = field(default_factory=dict)
    reason: str | None = None
    fix: str | None = None

    @property
    def compile(self) -> bool:
        """Whether this machine can compile for any of its devices."""
        return any(device.compile for device in self.devices.values())

    @property
    def run(self) -> bool:
        """Whether this machine can run it on any device."""
        return any(device.run for device in self.devices.values())

    @property
    def runnable(self) -> tuple[str, ...]:
        """The devices that it can run on here."""
        return tuple(name for name, device in self.devices.items() if device.run)


def _unparsed(text: object) -> InputError:
    return InputError(
        f"The target {text!r} does not parse.",
        expected="engine[:device[:precision[:arch]]]",
        got=repr(text),
        fix="write for example 'openvino:cpu:int8'",
    )


def _known(kind: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        near = difflib.get_close_matches(str(value).strip().lower(), known, n=1)
        raise InputError(
            f"The target's {kind} {value!r} is not known.",
            expected=f"one of {', '.join(known)}",
            got=repr(value),
            fix=f"did you mean {near[0]!r}?" if near else f"use one of: {', '.join(known)}",
        )
