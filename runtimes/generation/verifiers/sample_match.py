"""Draw what plain decoding would draw, and accept it where it was drafted.

With a deterministic draft it accepts as often as rejection sampling does, needs no draft
probabilities, and gives plain decoding's very tokens for the same seed.
"""

from __future__ import annotations

from sdk.runtimes.generation.contracts import SAMPLINGS, Chance, DraftTree, TargetRows, Verdict
from sdk.runtimes.generation.walking import walk


class SampleMatch:
    """Exact for any draft, since the draw does not look at it; made for deterministic ones."""

    lossless = True
    accepts = frozenset(SAMPLINGS)

    def verify(self, tree: DraftTree, target: TargetRows, chance: Chance, position: int) -> Verdict:
        """Draw once per node on the way."""
        return walk(tree, target, chance, position, None)


VERIFIER = SampleMatch
