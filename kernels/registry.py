"""Which kernels there are: a folder with a `spec.py` is one, and its name is the kernel's."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from sdk.errors import InputError

if TYPE_CHECKING:
    from sdk.kernels.spec import KernelSpec

HERE = Path(__file__).parent


@cache
def names() -> tuple[str, ...]:
    """Names of all kernels, without their domain."""
    return tuple(sorted(file.parent.name for file in HERE.glob("*/spec.py")))


@cache
def spec_of(name: str) -> KernelSpec:
    """The description of a kernel; imports torch."""
    if name not in names():
        raise InputError(f"There is no kernel {name!r}.", expected=", ".join(names()), got=name)
    return _the_spec(importlib.import_module(f"sdk.kernels.{name}.spec").__dict__, name)


def specs() -> tuple[KernelSpec, ...]:
    """Descriptions of all kernels; makes their operators, `torch.ops.edge.<name>`."""
    return tuple(spec_of(name) for name in names())


@cache
def spec_in(folder: Path) -> KernelSpec:
    """The description in a kernel's folder that lies anywhere; runs its `spec.py`."""
    name = f"edge_kernel_{folder.name}"
    found = importlib.util.spec_from_file_location(name, folder / "spec.py")
    if found is None or found.loader is None or not (folder / "spec.py").is_file():
        raise InputError("There is no kernel.", expected="a folder with a spec.py", got=folder)
    module = importlib.util.module_from_spec(found)
    sys.modules[name] = module
    found.loader.exec_module(module)
    return _the_spec(module.__dict__, folder.name)


def _the_spec(module: dict[str, object], name: str) -> KernelSpec:
    from sdk.kernels.spec import KernelSpec

    found = module.get(name)
    if not isinstance(found, KernelSpec) or found.short != name:
        raise InputError(
            f"The folder {name!r} does not describe a kernel of its name.",
            expected=f'@kernel("edge::{name}", ...) on a function {name} in spec.py',
            got=sorted(key for key, value in module.items() if isinstance(value, KernelSpec)),
        )
    return found
