"""Builds the native library with CMake, into a cache.

An installed wheel brings its library. A checkout has none: it is built when it is first needed, and
again when a source, a setting or the compiler is another one.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from sdk.kernels.cmake import cache_folder, compiler_version, digest, made, missing_tools

HERE = Path(__file__).parent
LIBRARY = "libedge_kernels.so"
SOURCES = (".h", ".cc", ".txt", ".cmake")
ONLY = "EDGE_KERNELS_ONLY"


def built(
    *, extra: Sequence[Path] = (), sanitize: str = "", folder: Path | None = None, root: Path = HERE
) -> Path:
    """The library of the kernels below `root` and the folders `extra`, built if it is not there.

    `EDGE_KERNELS_ONLY`, names separated by commas, leaves out the other kernels.
    EngineUnavailableError where there is no compiler, EngineError with its errors where it fails.
    """
    settings = _settings(extra, sanitize)
    key = "" if missing_tools() else source_digest(root, extra, _only(), settings)
    return made(root, settings, key, LIBRARY, folder)


def is_built(extra: Sequence[Path] = ()) -> bool:
    """Whether `built(extra=extra)` would find the library."""
    if missing_tools():
        return False
    key = source_digest(HERE, extra, _only(), _settings(extra, ""))
    return (cache_folder() / key / LIBRARY).is_file()


def _only() -> tuple[str, ...]:
    return tuple(sorted(filter(None, os.environ.get(ONLY, "").split(","))))


def _settings(extra: Sequence[Path], sanitize: str) -> list[str]:
    return [
        f"-DEDGE_EXTRA={';'.join(map(str, extra))}",
        f"-DEDGE_ONLY={';'.join(_only())}",
        f"-DEDGE_SANITIZE={sanitize}",
    ]


def source_digest(
    root: Path, extra: Sequence[Path], only: Sequence[str], settings: Sequence[str]
) -> str:
    """Of all that decides what the library is: sources, settings and the compiler's version."""
    parts = [compiler_version(), *settings]
    for place in (root, *extra):
        for file in sorted(place.rglob("*")):
            kernel = file.relative_to(place).parts[0]
            other = only and (place / kernel / "cpu.cc").is_file() and kernel not in only
            if file.suffix in SOURCES and not other:
                parts += [file.relative_to(place).as_posix(), file.read_text()]
    return digest(parts)
