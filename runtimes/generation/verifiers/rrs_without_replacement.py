"""Recursive rejection sampling for distinct siblings (Sequoia, arXiv:2402.12374)."""

from __future__ import annotations

from collections.abc import Sequence

from sdk.runtimes.generation.contracts import DETERMINISTIC, WITHOUT_REPLACEMENT, Row
from sdk.runtimes.generation.siblings import without
from sdk.runtimes.generation.walking import Choice, Place, RuleVerifier, ratio, residual


class RecursiveRejectionWithoutReplacement(RuleVerifier):
    """As `rrs`, and a rejected token also leaves q, as it left the drafter's."""

    accepts = frozenset({WITHOUT_REPLACEMENT, DETERMINISTIC})

    def rule(self, p: Row, q: Row, siblings: Sequence[int], place: Place) -> Choice:
        """r = norm((r - q)+) and q = norm(q without x) after each rejected x."""
        for index, token in enumerate(siblings):
            if place.accept(ratio(p[token], q[token]), index):
                return Choice(token, index + 1, index)
            p, q = residual(p, q), without(q, token)
        return Choice(place.draw(p), len(siblings))


VERIFIER = RecursiveRejectionWithoutReplacement
