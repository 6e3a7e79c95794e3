"""What a recipe is: a frozen dataclass of settings with presets, and `run(output) -> Student`."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from sdk.artifact import Artifact
from sdk.errors import InputError
from sdk.progress import Report

if TYPE_CHECKING:
    from typing import Self

    from torch import nn


@dataclass(frozen=True)
class Student:
    """What a recipe made: the module, its artifacts and the figures.

    `artifact` is the fastest of `artifacts`, which are keyed by the target that was asked for;
    `folder` holds the model card, report.json, the trained weights and what is needed to resume.
    """

    model: nn.Module
    artifact: Artifact
    artifacts: Mapping[str, Artifact]
    report: Mapping[str, Any]
    folder: Path


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Settings common to all recipes. A recipe is a subclass in the file of its name."""

    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {"tiny": {}, "full": {}}
    VERSION: ClassVar[int] = 1
    CLAIM: ClassVar[str] = ""
    """What the paper claims, in one sentence with its figures, for the model card."""

    @classmethod
    def preset(cls, name: str, **settings: Any) -> Self:
        """The preset's settings with some of them replaced; InputError names what is near."""
        if name not in cls.PRESETS:
            raise _unknown("preset", name, list(cls.PRESETS))
        known = [field.name for field in dataclasses.fields(cls)]
        for setting in settings:
            if setting not in known:
                raise _unknown("setting", setting, known)
        return cls(**{**cls.PRESETS[name], **settings})

    def digest(self) -> str:
        """Short hash of all settings and the version: what a run folder was made with."""
        text = json.dumps([type(self).__name__, self.VERSION, dataclasses.asdict(self)])
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def run(
        self,
        output: str | Path,
        *,
        resume: bool = True,
        overwrite: bool = False,
        progress: Report | None = None,
    ) -> Student:
        """Run all stages and write the artifact `output`; an interrupted run is taken up again."""
        raise NotImplementedError


def _unknown(what: str, name: str, known: list[str]) -> InputError:
    near = difflib.get_close_matches(name, known, n=1)
    return InputError(
        f"The recipe has no {what} {name!r}.",
        expected=f"one of {', '.join(known)}",
        got=repr(name),
        fix=f"did you mean {near[0]!r}?" if near else None,
    )
