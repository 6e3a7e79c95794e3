"""What follows two tokens, and how often: the table of ADED (arXiv:2407.12021)."""

from __future__ import annotations

import zipfile
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sdk.errors import ArtifactError, InputError
from sdk.runtimes.generation.storing import corrupt, write_whole

TOP = 12
"""Successors that a pair keeps."""
STEP, MOST = 0.04, 3.0
"""What a trigram that was just seen gains, and the most that it can have."""
WINDOW = 16
"""Tokens at the context's end that are learned from."""
MAX_VOCABULARY = 1 << 20  # three tokens fit one int64

Ids = NDArray[np.int64]
Scores = NDArray[np.float32]


class TrigramTable:
    """Successors of each pair of tokens: probabilities from a corpus, and what was added to them.

    The corpus part is three arrays. What was learned is kept for the `max_learned` pairs that were
    seen last, `TOP` successors above the corpus' own each, so memory is bounded.
    """

    def __init__(
        self,
        vocabulary: int,
        keys: Ids | None = None,
        starts: Ids | None = None,
        tokens: Ids | None = None,
        scores: Scores | None = None,
        *,
        max_learned: int = 8192,
    ) -> None:
        if not 0 < vocabulary <= MAX_VOCABULARY:
            raise InputError(
                "The vocabulary does not fit the table.",
                expected=f"1 to {MAX_VOCABULARY} tokens",
                got=vocabulary,
            )
        self.vocabulary = vocabulary
        self._keys = np.empty(0, np.int64) if keys is None else keys
        self._starts = np.zeros(1, np.int64) if starts is None else starts
        self._tokens = np.empty(0, np.int64) if tokens is None else tokens
        self._scores = np.empty(0, np.float32) if scores is None else scores
        self._learned: OrderedDict[int, dict[int, float]] = OrderedDict()
        self._max_learned = max_learned

    def __len__(self) -> int:
        """Pairs with successors."""
        return len(self._keys) + sum(key not in self for key in self._learned)

    def __contains__(self, key: int) -> bool:
        place = int(self._keys.searchsorted(key))
        return place < len(self._keys) and int(self._keys[place]) == key

    @classmethod
    def count(cls, texts: Iterable[Sequence[int]], vocabulary: int) -> TrigramTable:
        """From a corpus of token sequences."""
        table = cls(vocabulary)
        parts = [_triples(np.asarray(text, np.int64), vocabulary) for text in texts]
        triples, counts = np.unique(
            np.concatenate([*parts, np.empty(0, np.int64)]), return_counts=True
        )
        keys, tokens = np.divmod(triples, vocabulary)
        _, first, place = np.unique(keys, return_index=True, return_inverse=True)
        totals = np.add.reduceat(counts, first) if len(keys) else counts
        table._fill(keys, tokens, (counts / totals[place]).astype(np.float32))
        return table

    def successors(self, first: int, second: int) -> Mapping[int, float]:
        """Scores of what may follow; corpus probabilities until something was learned."""
        key = first * self.vocabulary + second
        return self._learned.get(key) or self._from_corpus(key)

    def learn(self, context: Sequence[int]) -> None:
        """Raise the trigrams at the end of `context`."""
        recent, learned = context[-WINDOW:], self._learned
        for first, second, third in zip(recent, recent[1:], recent[2:], strict=False):
            key = first * self.vocabulary + second
            row = learned.get(key)
            if row is None:
                row = self._remember(key)
            else:
                learned.move_to_end(key)
            score = row.get(third, 0.0) + STEP
            row[third] = score if score < MOST else MOST
            if len(row) > 2 * TOP:
                del row[min(row, key=row.__getitem__)]

    def save(self, path: str | Path) -> None:
        """Write corpus part and what was learned as one .npz file."""
        merged = TrigramTable(self.vocabulary)
        merged._fill(*self._rows())
        arrays: dict[str, Any] = {
            "vocabulary": np.array([self.vocabulary]),
            "keys": merged._keys,
            "starts": merged._starts,
            "tokens": merged._tokens,
            "scores": merged._scores,
        }
        write_whole(Path(path), lambda file: np.savez(file, **arrays))

    @classmethod
    def load(cls, path: str | Path) -> TrigramTable:
        """Read what `save` wrote; CorruptArtifactError where that is not what the file is."""
        path = Path(path)
        arrays = _read(path)
        vocabulary = int(arrays["vocabulary"][0]) if arrays["vocabulary"].size == 1 else 0
        keys, starts, tokens, scores = (
            arrays[name] for name in ("keys", "starts", "tokens", "scores")
        )
        sound = (
            0 < vocabulary <= MAX_VOCABULARY
            and len(starts) == len(keys) + 1
            and len(tokens) == len(scores) == starts[-1]
            and starts[0] == 0
            and bool((np.diff(starts) > 0).all() and (np.diff(keys) > 0).all())
            and _within(keys, vocabulary**2)
            and _within(tokens, vocabulary)
            and bool(np.isfinite(scores).all() and (scores >= 0).all())
        )
        if not sound:
            raise corrupt(path, expected="successors of pairs of tokens", got="other numbers")
        return cls(vocabulary, keys, starts, tokens, scores)

    def _from_corpus(self, key: int) -> dict[int, float]:
        place = int(self._keys.searchsorted(key))
        if place == len(self._keys) or self._keys[place] != key:
            return {}
        row = slice(int(self._starts[place]), int(self._starts[place + 1]))
        return dict(zip(self._tokens[row].tolist(), self._scores[row].tolist(), strict=True))

    def _remember(self, key: int) -> dict[int, float]:
        """A new row, in place of the one that was seen longest ago if there are too many."""
        row = self._learned[key] = self._from_corpus(key)
        if len(self._learned) > self._max_learned:
            self._learned.popitem(last=False)
        return row

    def _rows(self) -> tuple[Ids, Ids, Scores]:
        """(key, token, score) of all successors, learned ones in place of the corpus' own."""
        keys = np.repeat(self._keys, np.diff(self._starts))
        kept = ~np.isin(keys, np.fromiter(self._learned, np.int64, len(self._learned)))
        learned = [
            (key, token, score)
            for key, row in self._learned.items()
            for token, score in row.items()
        ]
        more = np.array(learned, np.float64).reshape(-1, 3)
        return (
            np.concatenate([keys[kept], more[:, 0].astype(np.int64)]),
            np.concatenate([self._tokens[kept], more[:, 1].astype(np.int64)]),
            np.concatenate([self._scores[kept], more[:, 2].astype(np.float32)]),
        )

    def _fill(self, keys: Ids, tokens: Ids, scores: Scores) -> None:
        """The `TOP` best successors of each pair."""
        order = np.lexsort((tokens, -scores, keys))
        keys, tokens, scores = keys[order], tokens[order], scores[order]
        _, first, counts = np.unique(keys, return_index=True, return_counts=True)
        kept = np.arange(len(keys)) - np.repeat(first, counts) < TOP
        self._keys = keys[first]
        self._tokens, self._scores = tokens[kept], scores[kept]
        self._starts = np.concatenate([[0], np.cumsum(np.minimum(counts, TOP))]).astype(np.int64)


def _triples(text: Ids, vocabulary: int) -> Ids:
    if len(text) and not 0 <= text.min() <= text.max() < vocabulary:
        raise InputError(
            "The corpus has tokens outside the vocabulary.",
            expected=f"0 to {vocabulary - 1}",
            got=f"{text.min()} to {text.max()}",
        )
    return (text[:-2] * vocabulary + text[1:-1]) * vocabulary + text[2:]


def _within(ids: Ids, end: int) -> bool:
    return not len(ids) or bool(0 <= ids.min() <= ids.max() < end)


_DTYPES = {
    "vocabulary": np.int64,
    "keys": np.int64,
    "starts": np.int64,
    "tokens": np.int64,
    "scores": np.float32,
}


def _read(path: Path) -> dict[str, NDArray[Any]]:
    """The arrays of an .npz file that is not compressed: no larger than the file."""
    try:
        with zipfile.ZipFile(path) as archive:
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                raise corrupt(path, expected="an uncompressed .npz file", got="a compressed one")
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in _DTYPES}
    except FileNotFoundError as error:
        raise ArtifactError(
            f"{path.name} is not there.", expected="a file", got=str(path)
        ) from error
    except (zipfile.BadZipFile, ValueError, KeyError, EOFError, MemoryError, OSError) as error:
        raise corrupt(path, expected="a table written by TrigramTable.save", got=error) from error
    for name, dtype in _DTYPES.items():
        if arrays[name].dtype != dtype or arrays[name].ndim != 1:
            raise corrupt(path, expected=f"{name} as {np.dtype(dtype)}", got=arrays[name].dtype)
    return arrays
