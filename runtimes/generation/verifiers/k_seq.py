"""K-SEQ for siblings drawn with replacement (SpecTr, arXiv:2310.15141)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sdk.runtimes.generation.contracts import DETERMINISTIC, IID, Row
from sdk.runtimes.generation.walking import Choice, Place, RuleVerifier, ratio

HALVINGS = 20
"""Of [1, n] in the search for rho. Any rho above the least is exact, and accepts little less."""


class KSeq(RuleVerifier):
    """Each sibling is tested against the same p / rho, not against what others left."""

    accepts = frozenset({IID, DETERMINISTIC})

    def rule(self, p: Row, q: Row, siblings: Sequence[int], place: Place) -> Choice:
        """Accept x with min(1, p(x) / (rho q(x))), or draw from what p has above the accepted."""
        rho = least_rho(p, q, len(siblings))
        for index, token in enumerate(siblings):
            if place.accept(ratio(p[token], rho * q[token]), index):
                return Choice(token, index + 1, index)
        return Choice(place.draw(left_over(p, q, rho, len(siblings))), len(siblings))


def least_rho(p: Row, q: Row, n: int) -> float:
    """Nearly the least rho in [1, n] with 1 - (1 - beta)^n <= rho * beta."""
    low, high = 1.0, float(n)
    if _fits(p, q, low, n):
        return low
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if _fits(p, q, middle, n) else (middle, high)
    return high


def accepted_share(p: Row, q: Row, rho: float) -> float:
    """beta(rho) = sum min(q, p / rho): how likely a single sibling passes."""
    return float(np.minimum(q, p / rho).sum())


def left_over(p: Row, q: Row, rho: float, n: int) -> Row:
    """p - min(q, p / rho) (1 - (1 - beta)^n) / beta, unnormalised; p if rounding leaves nothing."""
    beta = accepted_share(p, q, rho)
    if beta == 0:
        return p
    left = np.maximum(p - np.minimum(q, p / rho) * ((1 - (1 - beta) ** n) / beta), 0.0)
    return left if left.any() else p


def _fits(p: Row, q: Row, rho: float, n: int) -> bool:
    beta = accepted_share(p, q, rho)
    return 1 - (1 - beta) ** n <= rho * beta


VERIFIER = KSeq
