"""TensorRT: loads `model.engine` or `model.rtx.engine` on an NVIDIA GPU. Sessions are thread-safe.

Written against the Python API of `tensorrt` 10 and 11 and `tensorrt_rtx` 1.7. On machines without a
GPU the tests drive it with stand-ins for both bindings, which show the order of its calls and the
way of the data, and nothing of the GPU.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from sdk.errors import EngineUnavailableError
from sdk.extras import EXTRA, installed
from sdk.nvidia import (
    FILES,
    FIRST,
    FULL,
    INSTALL,
    RTX,
    Gpu,
    gpu,
    library,
    load,
    number,
    this_platform,
    version_of,
)
from sdk.runtimes.tensorrt_cuda import Cuda
from sdk.runtimes.tensorrt_session import TensorRtSession
from sdk.signature import Signature
from sdk.target import Availability, DeviceSupport, Target

PRECISIONS = ("fp32", "fp16", "bf16", "int8", "fp8", "w8", "int4")


def probe() -> Availability:
    """Which TensorRT library is installed, and whether there is a GPU to run it."""
    at = gpu()
    name = library(at)
    if name is not None:
        return Availability(f"{version_of(name)} ({name})", {"gpu": _support(name, at)})
    if installed(FULL):
        fix = "build where the GPU is, or ahead of time: pip install 'edge-sdk[tensorrt-rtx]'"
        needs_gpu = DeviceSupport(compile=False, run=False, reason=at.reason, fix=fix)
        return Availability(f"{version_of(FULL)} ({FULL})", {"gpu": needs_gpu}, at.reason, fix)
    return Availability(reason="neither tensorrt nor tensorrt-rtx is installed", fix=INSTALL)


def check_requires(requires: Mapping[str, str]) -> None:
    """Refuse engine files of another library version, platform or GPU, and say what to do."""
    name, wanted = requires["library"], requires["library_version"]
    found = version_of(name) if name in FILES else None
    if found != wanted:
        raise EngineUnavailableError(
            "The engine file was built by another version of TensorRT, and only that one reads it.",
            expected=f"{name} {wanted}",
            got="it is not installed" if found is None else f"{name} {found}",
            fix=f"pip install '{EXTRA.get(name, name)}=={wanted}', or compile the artifact again",
        )
    if requires["platform"] != this_platform():
        raise EngineUnavailableError(
            "The engine file was built on another platform.",
            expected=requires["platform"],
            got=this_platform(),
            fix="compile the artifact again on this platform",
        )
    _check_capability(requires["capabilities"], gpu())


def open_session(
    file: Path, signature: Signature, target: Target, *, threads: int
) -> TensorRtSession:
    """Load `file` on the current GPU; `threads` are the CPU's and play no part."""
    del threads
    name = next((name for name, own in FILES.items() if own == file.name), RTX)
    return TensorRtSession(file, signature, target, load(name), Cuda())


def _support(name: str, at: Gpu) -> DeviceSupport:
    if at.capability is None:
        return _ahead_of_time(at)
    able = tuple(p for p in PRECISIONS if number(at.capability) >= FIRST.get(p, 0))
    if name == RTX and at.capability.upper() not in load(RTX).ComputeCapability.__members__:
        return DeviceSupport(
            PRECISIONS,
            run=False,
            checked_on="proxy",
            reason=f"TensorRT-RTX has nothing for GPUs of compute capability {at.capability}",
            fix="pip install 'edge-sdk[tensorrt]', which has",
        )
    return DeviceSupport(able)


def _ahead_of_time(at: Gpu) -> DeviceSupport:
    """Builds without a GPU; ONNX Runtime stands in for it at the gates."""
    if not installed("onnxruntime"):
        return DeviceSupport(
            compile=False,
            run=False,
            checked_on="proxy",
            reason=f"{at.reason}; and onnxruntime, which checks builds without one, is missing",
            fix="pip install 'edge-sdk[onnxruntime]'",
        )
    return DeviceSupport(
        PRECISIONS,
        run=False,
        checked_on="proxy",
        reason=at.reason,
        fix="compile here, and load the artifact on a machine with an NVIDIA GPU and its driver",
    )


def _check_capability(built_for: str, at: Gpu) -> None:
    own = at.capability
    if own is None:
        raise EngineUnavailableError("The engine file needs an NVIDIA GPU.", got=at.reason)
    oldest, later, _ = built_for.partition(" and later")
    fits = number(own) >= number(oldest) if later else own in built_for.split("+")
    if not fits:
        raise EngineUnavailableError(
            "The engine file was built for other GPUs.",
            expected=built_for,
            got=own,
            fix=f"compile for this one: tensorrt:gpu:<precision>:{own}",
        )
