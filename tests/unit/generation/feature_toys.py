"""Toys that pass features on: a feature is the number of the context that it stands for.

So a feature that is stale, or beside the wrong token, is seen at once.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from toys import Model, ToySession

from sdk.runtimes.generation.contracts import ROOT, Step

Context = tuple[int, ...]
STAND_IN = 0.5


class Contexts:
    """Numbers for contexts."""

    def __init__(self) -> None:
        self._numbers: dict[Context, int] = {}
        self._contexts: list[Context] = []

    def number(self, context: Context) -> list[float]:
        """A feature."""
        if context not in self._numbers:
            self._numbers[context] = len(self._contexts)
            self._contexts.append(context)
        return [float(self._numbers[context])]

    def of(self, feature: Any) -> Context:
        """The context of a feature."""
        return self._contexts[int(feature[0])]


class Giving(ToySession):
    """A model that is fed tokens and gives features."""

    feature_width, given_width = 0, 1

    def __init__(self, model: Model, vocabulary: int, contexts: Contexts, **sizes: int) -> None:
        super().__init__(model, vocabulary, **sizes)
        self.contexts = contexts

    def forward(
        self, tokens: Sequence[int], parents: Sequence[int] | None = None, *, features: Any = None
    ) -> Step:
        assert features is None
        logits = super().forward(tokens, parents).logits
        before = self._committed()
        found = [
            self.contexts.number((*before, *(tokens[node] for node in path)))
            for path in self._paths
        ]
        return Step(logits, np.array(found))

    def features(self, start: int, stop: int) -> Any:
        assert 0 <= start <= stop <= self.length
        tokens = self._committed()
        found = [self.contexts.number(tokens[: place + 1]) for place in range(start, stop)]
        return np.array(found).reshape(stop - start, 1)

    def _committed(self) -> Context:
        return tuple(int(token) for token in self._cache[: self.length, 0])


class Taking(ToySession):
    """A model that goes on from features; `joined` where a token comes beside each.

    Its cache holds the numbers of the contexts it has read, each of which must continue the last,
    and what was fed with the feature of a guess is marked there.
    """

    feature_width = given_width = 1

    def __init__(
        self, model: Model, vocabulary: int, contexts: Contexts, *, joined: bool, **sizes: int
    ) -> None:
        super().__init__(model, vocabulary, **sizes)
        self.contexts, self._joined = contexts, joined

    def extend(self, tokens: Sequence[int], *, features: Any = None) -> None:
        self.forward(tokens, features=features)
        self.commit(range(len(tokens)))

    def forward(
        self, tokens: Sequence[int], parents: Sequence[int] | None = None, *, features: Any = None
    ) -> Step:
        assert len(features) == len(tokens)
        read = [self.contexts.of(feature) for feature in features]
        if self._joined:
            read = [(*context, token) for context, token in zip(read, tokens, strict=True)]
        numbers = [self.contexts.number(context)[0] for context in read]
        if self._joined:
            numbers = [n + float(f[0] % 1) for n, f in zip(numbers, features, strict=True)]
        self.forwards += 1
        self._write(numbers, range(ROOT, len(tokens) - 1) if parents is None else parents)
        for path in self._paths:
            rows = self._cache[[*range(self.length), *(self.length + node for node in path)]]
            contexts = [self.contexts.of(row) for row in rows]
            for before, after in itertools.pairwise(contexts):
                assert after[:-1] == before, "a feature stands beside the wrong token"
            assert len(contexts[0]) == 1 + self._joined, "the cache lacks its beginning"
        logits = np.stack([self.model(context) for context in read])
        mark = STAND_IN * self._joined
        return Step(logits, np.array([[number // 1 + mark] for number in numbers]))

    def features(self, start: int, stop: int) -> Any:
        assert 0 <= start <= stop <= self.length
        return self._cache[start:stop, :1].copy()
