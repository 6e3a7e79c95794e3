"""Drafters' files: written whole or not at all, and refused where they are something else."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from sdk.errors import CorruptArtifactError


def write_whole(path: Path, write: Callable[[BinaryIO], None]) -> None:
    """Write beside `path` and rename, so that readers see the old file or the new one."""
    staged = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with staged.open("wb") as file:
            write(file)
        staged.replace(path)
    finally:
        staged.unlink(missing_ok=True)


def corrupt(path: Path, *, expected: str, got: object) -> CorruptArtifactError:
    """The error for a file that was damaged, or is something else."""
    return CorruptArtifactError(
        f"{path.name} cannot be used.",
        expected=expected,
        got=got,
        fix="build it again; a wrong draft only costs time, but this file is not one",
    )
