"""coremltools and its PyTorch front end, quiet, with our own translations registered."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Callable, Iterator
from typing import Any

from torch._ops import OpOverload

from sdk.extras import quiet, require

Translation = Callable[[Any, Any], None]


@contextlib.contextmanager
def hushed() -> Iterator[None]:
    """In here coremltools neither warns nor draws progress bars; what matters is raised."""
    with (
        warnings.catch_warnings(),
        quiet("coremltools"),
        contextlib.redirect_stderr(io.StringIO()),
        contextlib.redirect_stdout(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        yield


def coremltools(module: str = "coremltools") -> Any:
    """The package, or a module of it."""
    with hushed():
        return require(module, purpose="Compiling for Core ML")


def is_translated(operator: OpOverload) -> bool:
    """Whether coremltools has a translation of an operator, of its own or of ours."""
    with hushed():  # they import coremltools
        from sdk.compilers.mil import compressed, translations  # noqa: F401
    registry = coremltools("coremltools.converters.mil.frontend.torch.torch_op_registry")
    kind = registry.sanitize_op_kind(operator.name())  # type: ignore[no-untyped-call]
    return kind in registry._TORCH_OPS_REGISTRY.name_to_func_mapping


def translates(*aliases: str) -> Callable[[Translation], Translation]:
    """Register a function under its name and aliases, in place of coremltools' own."""
    registry = coremltools("coremltools.converters.mil.frontend.torch.torch_op_registry")

    def register(function: Translation) -> Translation:
        registry.register_torch_op(function, torch_alias=list(aliases), override=True)
        return function

    return register
