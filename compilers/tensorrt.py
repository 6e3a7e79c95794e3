"""Compile for TensorRT: a serialized engine, through ONNX and a strongly typed network.

The library `tensorrt` builds for the GPU at hand. Without a GPU, or without that library,
`tensorrt_rtx` builds ahead of time for the compute capabilities that the target names
(`tensorrt:gpu:fp16:sm86+sm89`), or in its portable form. Its builds take no timings, so there is no
timing cache: the library keeps the calls and does nothing in them.
"""

from __future__ import annotations

import difflib
from dataclasses import replace
from pathlib import Path

from sdk.compilers.onnx_proxy import OnnxProxy
from sdk.compilers.program import Build, Program, SourceLine
from sdk.compilers.tensorrt_build import Order, Progress, build_engine, capabilities_of
from sdk.compilers.tensorrt_onnx import to_onnx
from sdk.errors import EngineUnavailableError, InputError, UnsupportedOperatorError
from sdk.nvidia import (
    FILES,
    FIRST,
    FULL,
    INSTALL,
    Gpu,
    gpu,
    library,
    number,
    this_platform,
    version_of,
)
from sdk.target import Target

PORTABLE = "sm80 and later"


def compile_program(
    program: Program, target: Target, folder: Path, *, progress: Progress | None = None
) -> Build:
    """Write `model.engine`, or `model.rtx.engine`; `progress` gets the builder's phases."""
    at = gpu()
    name = library(at)
    if name is None:
        raise EngineUnavailableError("No TensorRT library can build here.", fix=INSTALL)
    capabilities = _capabilities(target, name, at)
    model, sources = _onnx(program, folder)
    order = Order(name, program.signature, target.precision, capabilities)
    file = folder / FILES[name]
    file.write_bytes(build_engine(model, sources, order, progress))
    return Build(file, sources, requires=_requires(name, capabilities, at))


def open_check(_build: Build, program: Program, target: Target, *, threads: int) -> OnnxProxy:
    """ONNX Runtime on the very ONNX model that was compiled: the stand-in where no GPU is."""
    model, _ = program.lowered["tensorrt"]
    return OnnxProxy(model, program.signature, target, threads)


def _onnx(program: Program, folder: Path) -> tuple[bytes, dict[str, SourceLine]]:
    if "tensorrt" not in program.lowered:
        program.lowered["tensorrt"] = to_onnx(program, folder)
    model, sources = program.lowered["tensorrt"]
    return model, sources


def _requires(name: str, capabilities: tuple[str, ...], at: Gpu) -> dict[str, str]:
    """What the engine file is tied to; `sdk.runtimes.tensorrt.check_requires` reads it."""
    own = at.capability if name == FULL else None
    return {
        "library": name,
        "library_version": version_of(name) or "",
        "capabilities": own or "+".join(capabilities) or PORTABLE,
        "platform": this_platform(),
    }


def _capabilities(target: Target, name: str, at: Gpu) -> tuple[str, ...]:
    """Those that the target names, or that have its precision; none for the library's default."""
    first = FIRST.get(target.precision, 0)
    if name == FULL:
        return _of_this_gpu(target, str(at.capability), first)
    known = capabilities_of(name)
    able = tuple(one for one in known if number(one) >= first)
    if target.arch is None:
        return able if first > FIRST["bf16"] else ()
    chosen = tuple(dict.fromkeys(target.arch.split("+")))
    for one in chosen:
        _check_known(one, known, target)
        _check_able(one, able, target)
    return chosen


def _of_this_gpu(target: Target, own: str, first: int) -> tuple[str, ...]:
    if target.arch not in (None, own):
        raise InputError(
            f"The library 'tensorrt' builds for the GPU at hand, not for {target.arch!r}.",
            expected=own,
            got=target.arch,
            fix="leave the capability out, or use 'tensorrt-rtx' in an environment of its own",
        )
    _check_able(own, (own,) if number(own) >= first else (), target)
    return ()


def _check_known(name: str, known: tuple[str, ...], target: Target) -> None:
    if name in known:
        return
    near = difflib.get_close_matches(name.lower().replace("_", ""), known, n=1)
    raise InputError(
        f"The compute capability {name!r} of {target} is not one that TensorRT-RTX builds for.",
        expected=f"one of {', '.join(known)}, or several joined by '+'",
        got=repr(name),
        fix=f"did you mean {near[0]!r}?" if near else f"use one of: {', '.join(known)}",
    )


def _check_able(name: str, able: tuple[str, ...], target: Target) -> None:
    if name not in able:
        raise UnsupportedOperatorError(
            f"GPUs of compute capability {name} have no {target.precision}.",
            expected=f"one of {', '.join(able)}" if able else "a newer GPU",
            got=name,
            fix=f"use {replace(target, arch=able[0])}" if able else "use fp16",
        )
