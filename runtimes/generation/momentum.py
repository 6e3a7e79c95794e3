"""Momentum decoding (Lan et al., arXiv:2212.02175): greedy until the text comes back to itself.

The tokens so far are the nodes of a graph. Among the k most probable tokens a new one is free, and
one that closes a circle meets a resistance that grows with the length of what it repeats.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from sdk.runtimes.generation.history import History, Ids
from sdk.runtimes.generation.transforms import Scores, softmax

RESISTANCE = (0.0, 1.0, 2.0, 3.0, 4.0, 5.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Momentum:
    """score(v) = p(v) - alpha * f(l(v)) on the `width` most probable tokens; the best is taken.

    l(v) is the length of the longest end of history + v that is already in the history, and f its
    entry in `resistance`, infinite behind the table's end. Where all `width` tokens are infinite,
    the next most probable ones stand in, so that nothing is ever repeated at that length.
    """

    alpha: float = 0.2
    width: int = 5
    resistance: tuple[float, ...] = RESISTANCE
    greedy_only: bool = True

    def __call__(self, scores: Scores, history: History) -> Scores:
        """All tokens but the `width` most probable become minus infinity."""
        row = softmax(scores)
        tokens = history.tokens
        found = np.full(len(scores), -np.inf)
        for token in self._ranked(row):
            found[token] = row[token] - self._resist(tokens, int(token))
        if found.max() == -np.inf:
            return self._first_allowed(row, tokens)
        return found

    def _ranked(self, row: Scores) -> Ids:
        width = min(self.width, len(row))
        kept = np.flatnonzero(row >= np.partition(row, -width)[-width])
        return kept[np.argsort(-row[kept], kind="stable")][:width]

    def _resist(self, tokens: Ids, token: int) -> float:
        length = repeated(tokens, token, limit=len(self.resistance))
        if self.alpha == 0:
            return 0.0
        return self.alpha * (*self.resistance, math.inf)[length]

    def _first_allowed(self, row: Scores, tokens: Ids) -> Scores:
        found = np.full(len(row), -np.inf)
        for token in np.argsort(-row, kind="stable")[: np.count_nonzero(row)]:
            resistance = self._resist(tokens, int(token))
            if resistance < math.inf:
                found[token] = row[token] - resistance
                break
        return found


def repeated(tokens: Ids, token: int, *, limit: int) -> int:
    """Length, up to `limit`, of the longest end of tokens + token that occurs in `tokens`."""
    ends = np.flatnonzero(tokens == token)
    length = 0
    while len(ends) and length < limit:
        length += 1
        ends = ends[ends >= length]
        ends = ends[tokens[ends - length] == tokens[-length]]
    return length
