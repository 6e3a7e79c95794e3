"""Whether this machine has the kernels that an artifact was compiled with."""

from __future__ import annotations

from collections.abc import Sequence

from sdk.errors import KernelMissingError
from sdk.kernels.library import found_library
from sdk.manifest import KernelUse

NATIVE, PORTABLE = "native", "portable"
IN_ENGINE = (NATIVE, PORTABLE)  # nodes of the engine's file, which its binding runs


def check_kernels(kernels: Sequence[KernelUse]) -> None:
    """Raise KernelMissingError unless the library has each kernel that must be native.

    A kernel's version only grows, and each one also computes what those before it did.
    """
    needed = [kernel for kernel in kernels if kernel.binding == NATIVE]
    if not needed:
        return
    library, reason = found_library()
    have = {} if library is None else library.versions
    missing = [k for k in needed if have.get(k.name.partition("::")[2], 0) < k.version]
    if missing:
        raise KernelMissingError(
            "The artifact needs plugin kernels that are missing or older here.",
            expected=_listed(missing),
            got=reason or _listed(_present(missing, have)) or "none of them",
            fix="upgrade edge-sdk, or compile the artifact with kernels='portable'",
        )


def _present(missing: Sequence[KernelUse], have: dict[str, int]) -> list[KernelUse]:
    versions = ((k.name, have.get(k.name.partition("::")[2])) for k in missing)
    return [KernelUse(name, version, NATIVE) for name, version in versions if version is not None]


def _listed(kernels: Sequence[KernelUse]) -> str:
    return ", ".join(f"{kernel.name} version {kernel.version}" for kernel in kernels)
