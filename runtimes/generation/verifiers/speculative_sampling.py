"""Speculative sampling of a chain (Leviathan et al., arXiv:2211.17192; Chen et al., 2302.01318)."""

from __future__ import annotations

from collections.abc import Sequence

from sdk.errors import InputError
from sdk.runtimes.generation.contracts import SAMPLINGS, Row
from sdk.runtimes.generation.walking import Choice, Place, RuleVerifier, ratio, residual


class SpeculativeSampling(RuleVerifier):
    """A single guess per node, which all ways of drawing siblings agree on."""

    accepts = frozenset(SAMPLINGS)

    def rule(self, p: Row, q: Row, siblings: Sequence[int], place: Place) -> Choice:
        """Accept x with min(1, p(x) / q(x)), or draw from norm((p - q)+)."""
        if len(siblings) != 1:
            raise InputError(
                "Speculative sampling verifies chains.",
                expected="one child per node",
                got=f"{len(siblings)} siblings",
                fix="leave the verifier out, and the one that fits is taken",
            )
        token = siblings[0]
        if place.accept(ratio(p[token], q[token]), 0):
            return Choice(token, 1, 0)
        return Choice(place.draw(residual(p, q)), 1)


VERIFIER = SpeculativeSampling
