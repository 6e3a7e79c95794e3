"""The extension that brings all kernels into OpenVINO, built for the release that is installed.

OpenVINO's interface for extensions is C++ and differs from release to release; its package has the
headers. So the extension is built when it is first needed, and kept for that release.
"""

from __future__ import annotations

import importlib.util
from functools import cache
from importlib.metadata import version
from pathlib import Path

from sdk.errors import EdgeError, KernelMissingError
from sdk.kernels.building import HERE
from sdk.kernels.cmake import cache_folder, compiler_version, digest, made, missing_tools
from sdk.kernels.library import Library, library

SOURCE = HERE / "bindings" / "openvino"
EXTENSION = "libedge_openvino.so"


def extension() -> tuple[Library, Path]:
    """The library of kernels, and the extension of OpenVINO that runs them.

    KernelMissingError where there is no compiler to build one.
    """
    found = library()
    return found, _extension(found.path)


def found_extension() -> tuple[Library | None, str]:
    """The library that OpenVINO has an extension for, and where there is none the reason."""
    try:
        return extension()[0], ""
    except KernelMissingError as error:
        return None, f"{error.what} {error.got or ''}".strip()


def is_extension_built(kernels: Path) -> bool:
    """Whether `extension()` would find one for the library `kernels` and take no build."""
    return not missing_tools() and (cache_folder() / _recipe(kernels)[1] / EXTENSION).is_file()


@cache
def _extension(kernels: Path) -> Path:
    if missing := missing_tools():
        raise KernelMissingError(
            "The kernels' extension of OpenVINO is built where it runs: not possible here.",
            got=f"no {' and no '.join(missing)}",
            fix="install a C++ compiler and CMake (pip install cmake ninja), or use 'onnxruntime'",
        )
    settings, key = _recipe(kernels)
    try:
        return made(SOURCE, settings, key, EXTENSION, None)
    except EdgeError as error:
        raise KernelMissingError(
            f"The kernels' extension does not build for OpenVINO {version('openvino')}.",
            got=error.got,
            fix=error.fix,
        ) from error


def _recipe(kernels: Path) -> tuple[list[str], str]:
    """CMake's settings, and the name in the cache of what they make."""
    release = version("openvino")
    found = importlib.util.find_spec("openvino")
    assert found is not None
    assert found.origin is not None
    settings = [
        f"-DOpenVINO_DIR={Path(found.origin).parent / 'cmake'}",
        f"-DEDGE_LIBRARY={kernels}",
    ]
    files = (SOURCE / "CMakeLists.txt", SOURCE / "openvino.cc", HERE / "native" / "edge.h")
    parts = [compiler_version(), release, *settings, *(file.read_text() for file in files)]
    return settings, f"openvino-{release}-{digest(parts)}"
