"""Recursive rejection sampling, siblings drawn with replacement (SpecInfer, arXiv:2305.09781)."""

from __future__ import annotations

from collections.abc import Sequence

from sdk.runtimes.generation.contracts import DETERMINISTIC, IID, Row
from sdk.runtimes.generation.walking import Choice, Place, RuleVerifier, ratio, residual


class RecursiveRejection(RuleVerifier):
    """Each sibling is tested against what the rejected ones before it left of p."""

    accepts = frozenset({IID, DETERMINISTIC})

    def rule(self, p: Row, q: Row, siblings: Sequence[int], place: Place) -> Choice:
        """r = p; accept x with min(1, r(x) / q(x)); on rejection r = norm((r - q)+)."""
        for index, token in enumerate(siblings):
            if place.accept(ratio(p[token], q[token]), index):
                return Choice(token, index + 1, index)
            p = residual(p, q)
        return Choice(place.draw(p), len(siblings))


VERIFIER = RecursiveRejection
