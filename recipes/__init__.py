"""Recipes: teacher -> compact student -> artifact, on the server side.

A recipe is one file here that has `RECIPE`, a `Recipe` class; the file name is its name. What
recipes share is in the sub-packages. Imported lazily: a recipe imports torch.
"""

from __future__ import annotations

import difflib
import importlib
from pathlib import Path
from typing import Any, cast

from sdk.errors import InputError
from sdk.extras import require
from sdk.recipes.base import Recipe

_SHARED = ("__init__", "base", "workspace", "card")


def names() -> tuple[str, ...]:
    """All recipes, in alphabetical order."""
    files = sorted(Path(__file__).parent.glob("*.py"))
    return tuple(file.stem for file in files if file.stem not in _SHARED)


def recipe_class(name: str) -> type[Recipe]:
    """The class of the recipe `name`; InputError names what is near."""
    if name not in names():
        near = difflib.get_close_matches(name, names(), n=1)
        raise InputError(
            f"There is no recipe {name!r}.",
            expected=f"one of {', '.join(names())}",
            got=repr(name),
            fix=f"did you mean {near[0]!r}?" if near else "edge recipe list",
        )
    for package in ("torch", "accelerate"):
        require(package, purpose="Recipes")
    return cast("type[Recipe]", importlib.import_module(f"sdk.recipes.{name}").RECIPE)


def get(name: str, *, preset: str = "tiny", **settings: Any) -> Recipe:
    """The recipe `name` with a preset's settings, some of them replaced."""
    return recipe_class(name).preset(preset, **settings)
