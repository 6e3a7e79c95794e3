"""Token sequences in a file, with a suffix array: where in all of them does this occur?

Layout, little-endian: magic, vocabulary (u32), 0 (u32), length (u64), then `length` tokens (u32),
and `length` suffixes (u32) in the order of what they begin with. The file is mapped, not read.
"""

from __future__ import annotations

import struct
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sdk.errors import ArtifactError, InputError
from sdk.runtimes.generation.storing import corrupt, write_whole

MAGIC = b"EDGEDST1"
_header = struct.Struct("<8sIIQ")
SORTED = 32
"""Tokens of a suffix that the order looks at: no lookup is longer."""

Ids = NDArray[np.int64]


class Datastore:
    """A mapped file; every lookup touches a few pages of it."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.vocabulary, self.length = self._read_header()
        offset, count = _header.size, self.length
        self._tokens = self._map(offset, count)
        self._suffixes = self._map(offset + 4 * count, count)

    @staticmethod
    def build(texts: Iterable[Sequence[int]], vocabulary: int, path: str | Path) -> Datastore:
        """Write `texts`, one behind the other, and open the file."""
        parts = [np.asarray(text, np.int64) for text in texts]
        tokens = np.concatenate([*parts, np.empty(0, np.int64)])
        known = not len(tokens) or 0 <= tokens.min() <= tokens.max() < vocabulary
        if not known or not 0 < len(tokens) < 1 << 32:
            raise InputError(
                "These texts cannot be stored.",
                expected=f"at least one token, all from 0 to {vocabulary - 1}",
                got=f"{len(tokens)} tokens",
            )
        header = _header.pack(MAGIC, vocabulary, 0, len(tokens))
        arrays = [tokens.astype("<u4"), suffix_array(tokens, SORTED).astype("<u4")]
        parts_of_file = [header, *(array.tobytes() for array in arrays)]
        write_whole(Path(path), lambda file: file.writelines(parts_of_file))
        return Datastore(path)

    def find(self, pattern: Sequence[int]) -> range:
        """Ranks of the suffixes that begin with `pattern`."""
        wanted = list(pattern)
        ranks = range(self.length)

        def begins(rank: int) -> list[int]:
            return self.text(rank, len(wanted))

        low = bisect_left(ranks, wanted, key=begins)
        if low == self.length or begins(low) != wanted:
            return range(0)
        return range(low, bisect_right(ranks, wanted, lo=low, key=begins))

    def text(self, rank: int, count: int, *, skip: int = 0) -> list[int]:
        """`count` tokens of a suffix, behind the first `skip`; fewer at the end of the file."""
        start = self._suffixes[rank]
        if start >= self.length:
            raise corrupt(self.path, expected=f"suffixes below {self.length}", got=start)
        return self._tokens[start + skip : start + skip + count].tolist()

    def longest(self, context: Sequence[int], *, least: int, most: int) -> tuple[int, range]:
        """Length and ranks of the longest end of `context` that occurs; 0 where none does.

        What holds for an end holds for the shorter ones, so lengths are halved, not tried in turn.
        """
        low, found = least - 1, range(0)
        high = min(most, len(context), SORTED)
        while low < high:
            middle = (low + high + 1) // 2
            ranks = self.find(context[len(context) - middle :])
            if ranks:
                low, found = middle, ranks
            else:
                high = middle - 1
        return (low, found) if found else (0, found)

    def _read_header(self) -> tuple[int, int]:
        try:
            size = self.path.stat().st_size
            with self.path.open("rb") as file:
                head = file.read(_header.size)
        except OSError as error:
            raise ArtifactError(
                "The datastore cannot be read.", expected="a file", got=str(self.path)
            ) from error
        if len(head) < _header.size or not head.startswith(MAGIC):
            raise corrupt(self.path, expected="a datastore of Datastore.build", got=head[:8])
        _, vocabulary, _, length = _header.unpack(head)
        wanted = _header.size + 8 * length
        if size != wanted or not length or not vocabulary:
            raise corrupt(self.path, expected=f"{wanted} bytes", got=f"{size} bytes")
        return vocabulary, length

    def _map(self, offset: int, count: int) -> memoryview:
        """As a memoryview: a slice of it becomes a list without an array in between."""
        mapped = np.memmap(self.path, "<u4", "r", offset, (count,))
        return memoryview(mapped)  # type: ignore[arg-type]  # NumPy's stubs lack its buffer


def suffix_array(tokens: Ids, depth: int) -> Ids:
    """Suffixes in the order of their first `depth` tokens, by doubling (Manber and Myers, 1993)."""
    _, ranks = np.unique(tokens, return_inverse=True)
    order = np.argsort(ranks, kind="stable")
    width = 1
    while width < depth:
        behind = np.zeros_like(ranks)
        behind[:-width] = ranks[width:] + 1  # the end of the text comes before any token
        keys = ranks * (len(tokens) + 1) + behind
        order = np.argsort(keys, kind="stable")
        steps = np.concatenate([[0], np.diff(keys[order]) > 0])
        ranks = np.empty_like(ranks)
        ranks[order] = np.cumsum(steps)
        if ranks[order[-1]] == len(tokens) - 1:
            break
        width *= 2
    return order
