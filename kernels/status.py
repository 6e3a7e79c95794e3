"""What there is of the native kernels on this machine, for `edge doctor`. It builds nothing."""

from __future__ import annotations

from dataclasses import dataclass, field

from sdk.errors import KernelMissingError
from sdk.extras import installed
from sdk.kernels.cmake import FIX, missing_tools
from sdk.kernels.library import at_hand
from sdk.kernels.openvino import is_extension_built

LATER = "built when it is first needed"
NO_TOOLS = "there is no {} to build it"


@dataclass(frozen=True, slots=True)
class KernelStatus:
    """The library, what runs in it, and where each engine gets its kernels from."""

    library: str | None
    instructions: str | None
    """The instruction set in use: what the processor has, at most EDGE_ISA."""
    kernels: dict[str, int] = field(default_factory=dict)
    """Name -> version."""
    engines: dict[str, str] = field(default_factory=dict)
    """Engine with a binding -> `ready`, or why not."""
    reason: str | None = None
    fix: str | None = None


def status() -> KernelStatus:
    """Look, but build nothing."""
    missing = missing_tools()
    without = NO_TOOLS.format(" and no ".join(missing)) if missing else LATER
    try:
        found = at_hand()
    except KernelMissingError as error:
        return KernelStatus(None, None, reason=f"{error.what} {error.got or ''}", fix=error.fix)
    if found is None:
        return KernelStatus(None, None, reason=without, fix=FIX if missing else None)
    engines = {}
    if installed("onnxruntime"):
        engines["onnxruntime"] = "ready"
    if installed("openvino"):
        engines["openvino"] = "ready" if is_extension_built(found.path) else without
    names = {f"edge::{name}": version for name, version in found.versions.items()}
    return KernelStatus(str(found.path), found.isa, names, engines)
