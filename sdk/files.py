"""Reports that people save: their name, and writing them whole."""

from __future__ import annotations

import os
from pathlib import Path

from sdk.errors import InputError


def check_suffix(path: str | Path, *known: str) -> str:
    """The path's suffix; InputError unless it is one of `known`."""
    suffix = Path(path).suffix
    if suffix not in known:
        raise InputError(
            f"A report cannot be written to {Path(path).name!r}.",
            expected=f"a name that ends in {' or '.join(known)}",
            got=suffix or "no suffix",
        )
    return suffix


def write_whole(path: Path, text: str) -> None:
    """Write beside `path` and rename, so that it is there whole or as it was."""
    part = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(text, encoding="utf-8")
        part.replace(path)
    except OSError as error:
        raise InputError(
            f"{path} could not be written.", got=str(error), fix="choose another path"
        ) from error
    finally:
        part.unlink(missing_ok=True)
