"""Which kernels there are: a folder with a `spec.py` is one, and its name is the kernel's.

Folders of users count too: `EDGE_KERNELS_PATH` names folders that hold kernels, as PATH does.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdk.errors import InputError

if TYPE_CHECKING:
    from types import ModuleType

    from sdk.kernels.spec import KernelSpec

HERE = Path(__file__).parent
PATH = "EDGE_KERNELS_PATH"


def users_folders() -> tuple[Path, ...]:
    """Folders of users that hold kernels."""
    given = filter(None, os.environ.get(PATH, "").split(os.pathsep))
    return tuple(Path(folder).resolve() for folder in given)


def names() -> tuple[str, ...]:
    """Names of all kernels, without their domain."""
    folders = (HERE, *users_folders())
    return tuple(sorted({f.parent.name for folder in folders for f in folder.glob("*/spec.py")}))


def spec_of(name: str) -> KernelSpec:
    """The description of a kernel; imports torch."""
    for folder in users_folders():
        if (folder / name / "spec.py").is_file():
            return spec_in(folder / name)
    if name not in names():
        raise InputError(f"There is no kernel {name!r}.", expected=", ".join(names()), got=name)
    return _the_spec(importlib.import_module(f"sdk.kernels.{name}.spec"), name)


def composites() -> tuple[str, ...]:
    """Names of the kernels that have operators of Core ML in a `coreml.py`."""
    return tuple(name for name in names() if (_folder(name) / "coreml.py").is_file())


def composite_of(name: str) -> Callable[..., Any]:
    """What a kernel is in Core ML: `composite(mb, *tensors, **attributes)` of its `coreml.py`."""
    composite: Callable[..., Any] = _module_of(_folder(name) / "coreml.py").composite
    return composite


def specs() -> tuple[KernelSpec, ...]:
    """Descriptions of all kernels; makes their operators, `torch.ops.edge.<name>`."""
    return tuple(spec_of(name) for name in names())


@cache
def spec_in(folder: Path) -> KernelSpec:
    """The description in a kernel's folder that lies anywhere; runs its `spec.py`."""
    return _the_spec(_module_of(folder / "spec.py"), folder.name)


def _folder(name: str) -> Path:
    return next((f / name for f in users_folders() if (f / name).is_dir()), HERE / name)


def _module_of(file: Path) -> ModuleType:
    name = f"edge_kernel_{file.parent.name}_{file.stem}"
    found = importlib.util.spec_from_file_location(name, file)
    if found is None or found.loader is None or not file.is_file():
        raise InputError("There is no kernel.", expected=f"a folder with a {file.name}", got=file)
    module = importlib.util.module_from_spec(found)
    sys.modules[name] = module
    found.loader.exec_module(module)
    return module


def _the_spec(module: ModuleType, name: str) -> KernelSpec:
    from sdk.kernels.spec import KernelSpec

    found = getattr(module, name, None)
    if not isinstance(found, KernelSpec) or found.short != name:
        every = [key for key, value in vars(module).items() if isinstance(value, KernelSpec)]
        raise InputError(
            f"The folder {name!r} does not describe a kernel of its name.",
            expected=f'@kernel("edge::{name}", ...) on a function {name} in spec.py',
            got=every,
        )
    return found
