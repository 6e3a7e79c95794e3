"""Random numbers by place: a keyed hash of (position, lane), with the seed as its key.

A stream would tie each draw to how many came before it, and a draft that is rejected draws more.
By place, speculative and plain decoding see the same number at the same token, in whatever order
they come to it. BLAKE2b (RFC 7693) is in the standard library, has no state to rewind, and costs a
microsecond; a Philox generator costs 6 us to be set to a place, 28 us to be made.
"""

from __future__ import annotations

import hashlib
import struct

import numpy as np

from sdk.runtimes.generation.contracts import Row
from sdk.runtimes.generation.sampling import native

EMIT = 0
"""The lane of the token that a round ends with; siblings are tested in the lanes after it."""
DRAFT = 1 << 32
"""Lanes from here on belong to drafters, whose draws must not depend on the verifier's."""

_place = struct.Struct("<qq").pack
_MASK = (1 << 64) - 1


class Uniforms:
    """The `Chance` of a seed, any integer."""

    def __init__(self, seed: int = 0) -> None:
        key = (seed & _MASK).to_bytes(8, "little")
        self._keyed = hashlib.blake2b(digest_size=8, key=key)

    def at(self, position: int, lane: int = EMIT) -> float:
        """A number in [0, 1), a multiple of 2**-53."""
        digest = self._keyed.copy()
        digest.update(_place(position, lane))
        return (int.from_bytes(digest.digest(), "little") >> 11) * 2.0**-53

    def accept(self, probability: float, position: int, lane: int) -> bool:
        """Strictly below: a number that happens to be 0 accepts nothing impossible."""
        return self.at(position, lane) < probability

    def draw(self, row: Row, position: int, lane: int = EMIT) -> int:
        """By inversion of the cumulative sum; a token of weight 0 has an empty interval."""
        return pick(row, self.at(position, lane))


def pick(row: Row, u: float) -> int:
    """The token whose interval of the cumulative sum of `row` contains `u` times its total."""
    fast = native()
    return pick_by_numpy(row, u) if fast is None else fast.pick(row, u)


def pick_by_numpy(row: Row, u: float) -> int:
    """`pick` without native code."""
    cumulative = np.cumsum(row)
    token = int(cumulative.searchsorted(u * cumulative[-1], side="right"))
    if token < len(row):
        return token
    return int(np.flatnonzero(row)[-1])  # u times the total was rounded up to the total
