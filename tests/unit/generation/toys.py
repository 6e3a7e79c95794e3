"""Small models with a real cache: its rows are gathered, overwritten, and poisoned when dropped."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from sdk.runtimes.generation.contracts import ROOT, Logits, Step

Model = Callable[[tuple[int, ...]], Logits]


def markov(vocabulary: int, seed: int, *, sharpness: float = 1.5) -> Model:
    """Logits that depend on the last two tokens."""
    table = sharpness * np.random.default_rng(seed).normal(size=(vocabulary,) * 3)
    table = table.astype(np.float32)
    return lambda tokens: table[tokens[-2] if len(tokens) > 1 else 0, tokens[-1]]


def whole(vocabulary: int, seed: int, *, period: int = 0) -> Model:
    """Logits that depend on every token of the context, so that any slip of the cache shows.

    With a `period` the best token is mostly that many tokens back, which is easy to guess.
    """

    def logits(tokens: tuple[int, ...]) -> Logits:
        rng = np.random.default_rng([seed, *tokens])
        found = rng.normal(size=vocabulary).astype(np.float32)
        if period and len(tokens) >= period:
            found[tokens[-period]] += 3
        return found

    return logits


def near(model: Model, seed: int, *, noise: float) -> Model:
    """A model that mostly agrees with `model`."""

    def logits(tokens: tuple[int, ...]) -> Logits:
        found = model(tokens)
        rng = np.random.default_rng([seed, *tokens])
        return (found + noise * rng.normal(size=len(found))).astype(np.float32)

    return logits


class ToySession:
    """A `DecoderSession`. The cache has a row (token, position) per token; dropped rows are NaN."""

    def __init__(self, model: Model, vocabulary: int, *, capacity: int = 64) -> None:
        self.model, self.vocabulary, self.capacity = model, vocabulary, capacity
        self.length = 0
        self.forwards = 0
        self._cache: NDArray[np.float64] = np.full((capacity, 2), np.nan)
        self._paths: list[list[int]] = []

    def extend(self, tokens: Sequence[int]) -> None:
        self._write(tokens, range(ROOT, len(tokens) - 1))
        self.commit(range(len(tokens)))

    def forward(self, tokens: Sequence[int], parents: Sequence[int] | None = None) -> Step:
        self.forwards += 1
        self._write(tokens, range(ROOT, len(tokens) - 1) if parents is None else parents)
        rows = [self._attend(path) for path in self._paths]
        return Step(np.stack(rows))

    def commit(self, path: Sequence[int]) -> None:
        path = list(path)
        kept = self._cache[[self.length + node for node in path]]
        self._cache[self.length : self.length + len(path)] = kept
        self.length += len(path)
        self._poison()

    def rollback(self, length: int) -> None:
        assert 0 <= length <= self.length
        self.length = length
        self._poison()

    def fork(self) -> ToySession:
        return copy.deepcopy(self)

    def _write(self, tokens: Sequence[int], parents: Sequence[int]) -> None:
        self._poison()
        assert self.length + len(tokens) <= self.capacity
        for index, (token, parent) in enumerate(zip(tokens, parents, strict=True)):
            path = [*([] if parent == ROOT else self._paths[parent]), index]
            self._paths.append(path)
            self._cache[self.length + index] = token, self.length + len(path) - 1

    def _attend(self, path: list[int]) -> Logits:
        rows = self._cache[[*range(self.length), *(self.length + node for node in path)]]
        assert np.array_equal(rows[:, 1], np.arange(len(rows))), "cache out of order"
        logits = self.model(tuple(int(token) for token in rows[:, 0]))
        return (logits + 0 * rows.sum()).astype(np.float32)

    def _poison(self) -> None:
        self._cache[self.length :] = np.nan
        self._paths = []
