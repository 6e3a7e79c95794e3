"""A PyTorch program to engine files, on the build host. One module per engine.

Each engine module has `compile_program(program, target, folder) -> Build`. Imported lazily: these
modules import torch.
"""

from __future__ import annotations

import importlib
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

from sdk.errors import EngineUnavailableError
from sdk.extras import require
from sdk.target import ENGINES, Target

if TYPE_CHECKING:
    from sdk.compilers.program import Build, Program

IMPLEMENTED = tuple(name for name in ENGINES if (Path(__file__).parent / f"{name}.py").is_file())


def lower(program: Program, target: Target, folder: Path) -> Build:
    """Write the engine files of `program` for `target` into `folder`, which is made."""
    if target.engine not in IMPLEMENTED:
        raise EngineUnavailableError(
            f"This version has no compiler for the engine {target.engine!r}.",
            expected=f"one of {', '.join(IMPLEMENTED)}",
            got=target.engine,
        )
    require("torch", purpose="Compiling")
    from sdk.compilers.kernels import plan  # imports torch

    folder.mkdir(parents=True)
    module = importlib.import_module(f"sdk.compilers.{target.engine}")
    planned = plan(program, target)
    build = cast("Build", module.compile_program(planned.program, target, folder))
    return replace(build, kernels=(*build.kernels, *planned.uses)) if planned.uses else build
