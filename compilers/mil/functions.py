"""Several functions in one package, such as `encode` and `step` of one model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from sdk.compilers.mil.frontend import coremltools, hushed
from sdk.errors import EngineError, InputError

FAILURES = (ValueError, RuntimeError, TypeError, OSError, LookupError, AssertionError)


def join(packages: Mapping[str, Path], destination: Path) -> Path:
    """Write one `.mlpackage` with a function for each of `packages`; constants that agree are one.

    packages: name of a function -> a package with the one function `main`, for iOS18 or later. The
        first is the default.
    """
    if not packages:
        raise InputError("A Core ML package needs at least one function.", got="none")
    utils = coremltools("coremltools.models.utils")
    descriptor = utils.MultiFunctionDescriptor()
    for name, package in packages.items():
        descriptor.add_function(str(package), "main", name)
    descriptor.default_function_name = next(iter(packages))
    try:
        with hushed():
            utils.save_multifunction(descriptor, str(destination))
    except FAILURES as error:
        raise EngineError(f"coremltools could not join {list(packages)}: {error}") from error
    return destination
