"""Where a program runs: `engine[:device[:precision]]`, and whether that can be done here."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, replace

from sdk.errors import InputError

ENGINES = ("onnxruntime", "openvino", "tensorrt", "coreml", "torch")
DEVICES = ("cpu", "gpu", "npu")
PRECISIONS = ("fp32", "fp16", "bf16", "int8")


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
class Availability:
    """What an engine can do on this machine; the answer of `probe()`, which never raises."""

    compile: bool
    run: bool
    version: str | None = None
    devices: tuple[str, ...] = ()
    precisions: tuple[str, ...] = ()
    reason: str | None = None
    fix: str | None = None


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
