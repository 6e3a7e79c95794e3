"""All sets that n siblings can be, with their probabilities: small supports only."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterator

import numpy as np

from sdk.errors import InputError
from sdk.runtimes.generation.contracts import DETERMINISTIC, GREEDY, IID, Row
from sdk.runtimes.generation.siblings import top_tokens, without

LIMIT = 50_000
"""Ordered draws to go through."""


def draft_sets(q: Row, n: int, sampling: str) -> dict[frozenset[int], float]:
    """Pr(the siblings are this set); the sets' probabilities sum to one."""
    support = np.flatnonzero(q).tolist()
    if sampling == DETERMINISTIC:
        return {frozenset(top_tokens(q, n)): 1.0}
    if sampling == GREEDY:
        return _greedy(q, n)
    n = n if sampling == IID else min(n, len(support))
    if len(support) ** n > LIMIT:
        raise InputError(
            "There are too many possible drafts to go through.",
            expected=f"at most {LIMIT} ordered draws",
            got=f"{len(support)} tokens, {n} siblings",
            fix="truncate the distribution with top_k, or take another verifier",
        )
    draws = _with(q, support, n) if sampling == IID else _without(q, support, n)
    found: dict[frozenset[int], float] = defaultdict(float)
    for tokens, probability in draws:
        found[frozenset(tokens)] += probability
    return dict(found)


def _with(q: Row, support: list[int], n: int) -> Iterator[tuple[tuple[int, ...], float]]:
    for tokens in itertools.product(support, repeat=n):
        yield tokens, float(np.prod(q[list(tokens)]))


def _without(q: Row, support: list[int], n: int) -> Iterator[tuple[tuple[int, ...], float]]:
    for tokens in itertools.permutations(support, n):
        left = dict.fromkeys(support)
        probability = 1.0
        for token in tokens:
            probability *= float(q[token] / q[list(left)].sum())
            del left[token]
        yield tokens, probability


def _greedy(q: Row, n: int) -> dict[frozenset[int], float]:
    top = top_tokens(q, n - 1)
    rest = without(q, *top)
    if not rest.any():
        return {frozenset(top): 1.0}
    return {frozenset([*top, token]): float(rest[token]) for token in np.flatnonzero(rest).tolist()}
