"""The plugin kernels of a session: their library, and the file that its engine loads them from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from sdk.errors import KernelMissingError
from sdk.kernels.library import Library, found_library
from sdk.kernels.needs import IN_ENGINE, check_kernels
from sdk.kernels.openvino import extension
from sdk.manifest import KernelUse

ATTENTION = "edge::tree_attention"


@dataclass(frozen=True)
class Plugin:
    """The library, and what the engine registers: the library itself, or an extension for it."""

    library: Library
    file: Path
    used: frozenset[str] = frozenset()
    """Names of the kernels that the engine file has."""

    @property
    def skips_unused_rows(self) -> bool:
        """Whether attention reads only the rows of a past that are in use, of however many."""
        return ATTENTION in self.used

    def has(self, kind: str) -> bool:
        """Whether operators of `kind` are the library's."""
        return kind in self.library.kernels

    def kernel(self, kind: str) -> str:
        """The kernel's name and instruction set, as placements name it."""
        return f"edge::{kind} ({self.library.isa})"


def plugin_of(engine: str, kernels: Sequence[KernelUse]) -> Plugin | None:
    """What `engine` needs for files with `kernels`; None where nothing is needed or found.

    KernelMissingError where kernels that must be native are missing or older, or the engine's
    extension cannot be built.
    """
    check_kernels(kernels)
    if not any(kernel.binding in IN_ENGINE for kernel in kernels):
        return None
    if engine not in PLUGINS:
        raise KernelMissingError(
            f"The engine {engine!r} runs no plugin kernels.",
            expected=" or ".join(PLUGINS),
            got=", ".join(kernel.name for kernel in kernels),
        )
    plugin = PLUGINS[engine]()
    used = frozenset(kernel.name for kernel in kernels)
    return None if plugin is None else replace(plugin, used=used)


def _onnxruntime() -> Plugin | None:
    library, _ = found_library()  # without it, the file's own bodies of portable kernels run
    return None if library is None else Plugin(library, library.path)


def _openvino() -> Plugin:
    return Plugin(*extension())


PLUGINS: dict[str, Callable[[], Plugin | None]] = {
    "onnxruntime": _onnxruntime,
    "openvino": _openvino,
}
