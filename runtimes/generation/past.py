"""The keys and values of all layers: one block each, rows written in place, never joined."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.float32]
LEAST = 64


def bucket(length: int, capacity: int) -> int:
    """Rows that engines see for `length` committed tokens: two sizes an octave, from 64.

    Each size is a shape that an engine prepares for once; rows beyond the length cost its time.
    """
    size = LEAST
    while size < length:
        octave = 1 << size.bit_length() - 1
        size = octave * 3 // 2 if size == octave else octave * 2
    return min(size, capacity)


class Past:
    """Keys or values, [L, H, P, D] in the first bytes of a block for the whole capacity.

    P grows and shrinks with the committed length; the rows of each head move when it does. What
    lies behind the length is always finite: a weight of zero is to leave nothing of it.
    """

    def __init__(self, layers: int, heads: int, width: int, capacity: int) -> None:
        self.capacity = capacity
        self._count, self._width = layers * heads, width
        self._shape = (layers, heads)
        self._block: Rows = np.zeros(self._count * capacity * width, np.float32)
        self.array = self._at(bucket(0, capacity))

    @property
    def size(self) -> int:
        """P."""
        return int(self.array.shape[2])

    def resize(self, size: int, length: int) -> None:
        """Make room for `size` rows, of which the first `length` stay."""
        before = self.array.reshape(self._count, -1, self._width)
        self.array = self._at(size)
        after = self.array.reshape(self._count, -1, self._width)
        heads = range(self._count)
        # in the direction in which no head is written over before it was moved
        for head in heads if size < before.shape[1] else reversed(heads):
            after[head, :length] = before[head, :length]
            after[head, length:] = 0

    def clear(self, start: int, stop: int) -> None:
        """Zero the rows of forgotten tokens: one may have been NaN."""
        self.array[:, :, start:stop] = 0

    def copy(self, length: int) -> Past:
        """A block of its own with the first `length` rows."""
        made = Past(*self._shape, self._width, self.capacity)
        made.array = made._at(self.size)
        made.array[:, :, :length] = self.array[:, :, :length]
        return made

    def _at(self, size: int) -> Rows:
        used = self._block[: self._count * size * self._width]
        return used.reshape(*self._shape, size, self._width)
