"""Where guesses come from without a model: one drafter per file; the file name is the registry.

They give deterministic drafts, so that sampled output is plain decoding's, token by token.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import cast

from sdk.errors import InputError
from sdk.runtimes.generation.contracts import Drafter

NAMES = tuple(sorted(path.stem for path in Path(__file__).parent.glob("[a-z]*.py")))


def named(name: str) -> type[Drafter]:
    """The drafter class of the file `name`."""
    if name not in NAMES:
        raise InputError(
            f"There is no drafter {name!r}.", expected=f"one of {', '.join(NAMES)}", got=name
        )
    return cast("type[Drafter]", importlib.import_module(f"{__name__}.{name}").DRAFTER)
