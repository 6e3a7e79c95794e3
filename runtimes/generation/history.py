"""The tokens so far, as a value: appending gives a new history and leaves the old one usable."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]


class _Buffer:
    """Storage that histories share; `used` entries are taken, and never change."""

    def __init__(self, capacity: int) -> None:
        self.data = np.empty(capacity, np.int64)
        self.used = 0


class History:
    """Prompt and output. Appending costs O(1) along one path, and a copy where paths part."""

    __slots__ = ("_buffer", "length", "prompt_length")

    def __init__(self, prompt: Sequence[int]) -> None:
        self._buffer = _Buffer(len(prompt) + 64)
        self._buffer.data[: len(prompt)] = prompt
        self._buffer.used = self.length = self.prompt_length = len(prompt)

    def append(self, token: int) -> History:
        """This history with `token` behind it."""
        buffer, length = self._buffer, self.length
        if length < buffer.used and buffer.data[length] != token:
            buffer = self._copied()  # another path has gone on from here
        elif length == len(buffer.data):
            buffer = self._copied()
        if length == buffer.used:
            buffer.data[length] = token
            buffer.used += 1
        return self._on(buffer, length + 1)

    @property
    def tokens(self) -> Ids:
        """[length], not to be written to."""
        return self._buffer.data[: self.length]

    @property
    def output(self) -> Ids:
        """What came after the prompt."""
        return self._buffer.data[self.prompt_length : self.length]

    def _copied(self) -> _Buffer:
        copied = _Buffer(2 * self.length + 64)
        copied.data[: self.length] = self.tokens
        copied.used = self.length
        return copied

    def _on(self, buffer: _Buffer, length: int) -> History:
        made = History.__new__(History)
        made._buffer, made.length, made.prompt_length = buffer, length, self.prompt_length
        return made
