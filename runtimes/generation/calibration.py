"""How often a drafter's claims come true: what its scores are worth."""

from __future__ import annotations

import math
from collections.abc import Sequence

from sdk.runtimes.generation.contracts import NOTHING, ROOT, DraftTree

LOW, HIGH = -5, 9
"""Claims are kept apart by their odds, in powers of two: from 1 to 32 up to 512 to 1."""
CLAIMS = [1 / (1 + 2.0**-power) for power in range(LOW, HIGH + 1)]
STEPS = 2**HIGH
_KINDS = [
    min(max(round(math.log2(max(step, 1) / max(STEPS - step, 1))), LOW), HIGH) - LOW
    for step in range(STEPS + 1)
]
"""Of claims in steps of 1 / STEPS."""
FORGET = 0.95
"""Weight of the past, per claim."""
WEIGHT = 3.0
"""How many trials it is worth what the drafter says, if it is as right as with other claims."""


class Calibration:
    """From a claim, that a node is right where its parent is, to the share of such that were.

    It learns from all nodes that a draft had, whether or not the target read them: what came next
    says which of them were right.
    """

    def __init__(self) -> None:
        self._hits, self._trials = [0.0] * len(CLAIMS), [0.0] * len(CLAIMS)
        self._right = self._claimed = WEIGHT
        self._last: tuple[DraftTree, list[int]] = (NOTHING, [])

    def chances(self, tree: DraftTree) -> list[float]:
        """For each node of `tree`, which has scores, how likely it is accepted."""
        said = WEIGHT * min(1.0, self._right / self._claimed)
        chances: list[float] = []
        for kind, parent in zip(self._kinds(tree), tree.parents, strict=True):
            share = (self._hits[kind] + said * CLAIMS[kind]) / (self._trials[kind] + WEIGHT)
            chances.append(share if parent == ROOT else share * chances[parent])
        return chances

    def learn(self, tree: DraftTree, committed: Sequence[int]) -> int:
        """Compare the tree with the tokens that came behind its root; how many it had right."""
        if not tree:
            return 0
        kinds, tokens, place = self._kinds(tree), tree.tokens, ROOT
        for depth, token in enumerate(committed):
            right = None
            for node in tree.children(place):
                hit = tokens[node] == token
                self._count(kinds[node], hit=hit)
                if hit:
                    right = node
            if right is None:
                return depth
            place = right
        return len(committed)

    def _count(self, kind: int, *, hit: bool) -> None:
        self._trials[kind] = FORGET * self._trials[kind] + 1
        self._hits[kind] = FORGET * self._hits[kind] + hit
        self._claimed = FORGET * self._claimed + CLAIMS[kind]
        self._right = FORGET * self._right + hit

    def _kinds(self, tree: DraftTree) -> list[int]:
        """For each node, the kind of its claim; of the last tree as they were."""
        if self._last[0] is not tree:
            self._last = tree, _kinds(tree)
        return self._last[1]


def _kinds(tree: DraftTree) -> list[int]:
    """For each node, the kind of what it claims given its parent."""
    kinds, scores = [], tree.scores
    for score, parent in zip(scores, tree.parents, strict=True):
        above = 1.0 if parent == ROOT else scores[parent]
        kinds.append(_KINDS[min(int(STEPS * score / above + 0.5), STEPS) if above > 0 else 0])
    return kinds
