"""The folder of one run of a recipe: stages, figures, and the settings that it was made with."""

from __future__ import annotations

import contextlib
import json
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sdk.errors import InputError
from sdk.recipes.base import Recipe

SETTINGS, ELAPSED = "settings.json", "seconds.txt"


@dataclass(frozen=True)
class Workspace:
    """`<output>.run`, where a stage that is finished is not run again."""

    folder: Path

    @classmethod
    def open(cls, output: Path, recipe: Recipe, *, resume: bool) -> Workspace:
        """Make the folder, or take up the one of an earlier run with the same settings."""
        folder = output.with_suffix(".run")
        if not resume:
            shutil.rmtree(folder, ignore_errors=True)
        file = folder / SETTINGS
        if file.is_file() and json.loads(file.read_text())["digest"] != recipe.digest():
            raise InputError(
                f"{folder} was made with other settings.",
                expected=f"the settings in {file}",
                fix="choose another output, or start again with resume=False (--no-resume)",
            )
        folder.mkdir(parents=True, exist_ok=True)
        settings = {"recipe": type(recipe).__name__, "digest": recipe.digest(), **asdict(recipe)}
        file.write_text(json.dumps(settings, indent=1))
        return cls(folder)

    @contextlib.contextmanager
    def clock(self) -> Iterator[Callable[[], float]]:
        """A function that tells the seconds spent in this folder, over all its runs."""
        file = self.folder / ELAPSED
        before = float(file.read_text()) if file.is_file() else 0.0
        started = time.monotonic()
        try:
            yield lambda: before + time.monotonic() - started
        finally:
            file.write_text(f"{before + time.monotonic() - started:.1f}")

    def once(self, name: str, compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The figures of a step: computed once, then read from `<name>.json`."""
        file = self.folder / f"{name}.json"
        if file.is_file():
            return dict(json.loads(file.read_text()))
        figures = compute()
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_suffix(".part")
        part.write_text(json.dumps(figures, indent=1))
        part.rename(file)
        return figures
