"""The hidden states of committed tokens, of a step that gives some."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from sdk.errors import GenerationError

Features = NDArray[np.float32]


class KeptFeatures:
    """[capacity, width] beside a cache; nothing where the width is 0."""

    def __init__(self, capacity: int, width: int) -> None:
        self._width = width
        self._rows = np.zeros((capacity if width else 0, width), np.float32)

    def of(self, start: int, stop: int, *, length: int) -> Features:
        """[stop - start, width] of `length` committed tokens; a view that later ones overwrite."""
        if not self._width or not 0 <= start <= stop <= length:
            raise GenerationError(
                "There are no such features.",
                expected=f"those of committed tokens, 0 to {length}, of a step that has some",
                got=f"{start} to {stop}, {self._width} wide",
                fix="compile the model with features=True",
            )
        return self._rows[start:stop]

    def keep(self, start: int, found: Features | None, path: Sequence[int]) -> None:
        """Those of the tokens of a pass that are committed behind `start` others."""
        if found is not None:
            self._rows[start : start + len(path)] = found[list(path)]

    def copy(self, other: KeptFeatures, length: int) -> None:
        """The first ones of another cache."""
        self._rows[:length] = other._rows[:length]
