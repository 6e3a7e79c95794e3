"""Siblings that are the draft's n - 1 most probable tokens and one draw from the others.

The verifier of "Towards Optimal Multi-draft Speculative Decoding" (arXiv:2502.18779), which attains
the optimum for such drafts; SpecHub (Sun et al., EMNLP 2024) is the case n = 2.
"""

from __future__ import annotations

from collections.abc import Sequence

from sdk.runtimes.generation.contracts import DETERMINISTIC, GREEDY, Row
from sdk.runtimes.generation.siblings import without
from sdk.runtimes.generation.walking import Choice, Place, RuleVerifier, ratio, residual


class GreedyDraft(RuleVerifier):
    """The drawn sibling is tested; the certain ones catch what its rejection leaves."""

    accepts = frozenset({GREEDY, DETERMINISTIC})

    def rule(self, p: Row, q: Row, siblings: Sequence[int], place: Place) -> Choice:
        """Accept the last sibling y with min(1, p(y) / q'(y)), or draw from norm((p - q')+)."""
        *top, drawn = siblings
        rest = without(q, *top)
        if place.accept(ratio(p[drawn], rest[drawn]), 0):
            return Choice(drawn, len(siblings), len(siblings) - 1)
        return Choice(place.draw(residual(p, rest)), len(siblings))


VERIFIER = GreedyDraft
