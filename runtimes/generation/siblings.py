"""Drawing the siblings of one node from a draft's distribution, in each of the ways."""

from __future__ import annotations

import numpy as np

from sdk.errors import InputError
from sdk.runtimes.generation.contracts import (
    DETERMINISTIC,
    GREEDY,
    IID,
    SAMPLINGS,
    WITHOUT_REPLACEMENT,
    Chance,
    Row,
)
from sdk.runtimes.generation.uniforms import DRAFT


def top_tokens(q: Row, count: int) -> list[int]:
    """The `count` most probable tokens of q; of equals the ones with the smaller ids."""
    if count <= 0:
        return []
    if count == 1:
        token = int(q.argmax())
        return [token] if q[token] > 0 else []
    count = min(count, len(q))
    kept = np.flatnonzero(q >= np.partition(q, -count)[-count])
    order = np.argsort(-q[kept], kind="stable")[:count]
    return [token for token in kept[order].tolist() if q[token] > 0]


def without(q: Row, *tokens: int) -> Row:
    """norm(q with q = 0 on `tokens`); all zeros where nothing is left."""
    left = q.copy()
    left[list(tokens)] = 0.0
    total = left.sum()
    return left / total if total > 0 else left


def draw(
    q: Row, count: int, *, sampling: str, chance: Chance, position: int, lane: int = 0
) -> list[int]:
    """`count` siblings, or as many as q has tokens where they must differ.

    `lane` is a number of the node among the drafted ones; each has lanes of its own.
    """
    first = DRAFT * (lane + 1)
    if sampling == DETERMINISTIC:
        return top_tokens(q, count)
    if sampling == IID:
        return [chance.draw(q, position, first + i) for i in range(count)]
    if sampling == WITHOUT_REPLACEMENT:
        return _distinct(q, count, chance, position, first)
    if sampling == GREEDY:
        return _greedy(q, count, chance, position, first)
    raise InputError(
        "There is no such way to draw siblings.", expected=" or ".join(SAMPLINGS), got=sampling
    )


def _distinct(q: Row, count: int, chance: Chance, position: int, first: int) -> list[int]:
    drawn: list[int] = []
    while len(drawn) < count and q.any():
        token = chance.draw(q, position, first + len(drawn))
        drawn.append(token)
        q = without(q, token)
    return drawn


def _greedy(q: Row, count: int, chance: Chance, position: int, first: int) -> list[int]:
    if count < 1:
        return []
    top = top_tokens(q, count - 1)
    rest = without(q, *top)
    return [*top, chance.draw(rest, position, first)] if rest.any() else top
