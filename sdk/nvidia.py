"""What there is of NVIDIA's on this machine: a GPU, and which of the two TensorRT libraries.

`tensorrt` builds for the GPU at hand and needs one to build. `tensorrt_rtx` builds ahead of time,
for named compute capabilities, without a GPU. Both have one API, and files that only they read.
"""

from __future__ import annotations

import platform
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType
from typing import Any

from sdk.errors import EngineUnavailableError
from sdk.extras import EXTRA, installed, require

FULL, RTX = "tensorrt", "tensorrt_rtx"
FILES = {FULL: "model.engine", RTX: "model.rtx.engine"}
# precision -> the first capability whose GPUs have it
FIRST = {"bf16": 80, "fp8": 89}
INSTALL = "pip install 'edge-sdk[tensorrt-rtx]' (no GPU needed), or 'edge-sdk[tensorrt]' beside one"


@dataclass(frozen=True, slots=True)
class Gpu:
    """The GPU at hand as `sm89`, or why there is none."""

    capability: str | None
    reason: str | None = None


def gpu() -> Gpu:
    """Ask CUDA for the current GPU. Never raises."""
    try:
        cuda = require("cuda.bindings.runtime", purpose="Running on an NVIDIA GPU")
    except (EngineUnavailableError, ImportError) as error:  # `cuda` is a namespace of many packages
        return Gpu(None, f"no NVIDIA GPU can be used: {str(error).splitlines()[0]}")
    status, count = cuda.cudaGetDeviceCount()
    if status.value or not count:
        return Gpu(None, f"no NVIDIA GPU can be used: {why(cuda, status)}")
    return Gpu(_capability(cuda))


def why(cuda: Any, status: Any) -> str:
    """What CUDA says of one of its own status codes."""
    if status.name == "cudaErrorInsufficientDriver":
        return "there is no NVIDIA driver, or it is older than CUDA"
    _, text = cuda.cudaGetErrorString(status)
    return f"{text.decode()} ({status.name})"


def library(at: Gpu) -> str | None:
    """The TensorRT library that this machine builds with, or None."""
    if at.capability is not None and installed(FULL):
        return FULL
    return RTX if installed(RTX) else None


def load(name: str) -> ModuleType:
    """Import one of the two; EngineUnavailableError with the command that installs it."""
    return require(name, purpose="The engine 'tensorrt'")


def version_of(name: str) -> str | None:
    """Version of an installed TensorRT library, without importing it: that takes seconds."""
    try:
        return version(EXTRA[name])
    except PackageNotFoundError:
        return None


def this_platform() -> str:
    """Operating system and processor that engine files are tied to, such as `linux-x86_64`."""
    return f"{platform.system()}-{platform.machine()}".lower()


def number(capability: str) -> int:
    """89 for `sm89`: a greater number is a newer GPU."""
    return int(capability.removeprefix("sm"))


def _capability(cuda: Any) -> str:
    attributes = cuda.cudaDeviceAttr
    parts = (
        attributes.cudaDevAttrComputeCapabilityMajor,
        attributes.cudaDevAttrComputeCapabilityMinor,
    )
    return "sm" + "".join(str(cuda.cudaDeviceGetAttribute(part, 0)[1]) for part in parts)


def listener(trt: ModuleType) -> Any:
    """A logger for one of the libraries; its `errors` are the messages that matter."""
    serious = (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR)

    class Listener(trt.ILogger):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in serious:
                self.errors.append(message)

    return Listener()
