"""RASD (arXiv:2503.03434): a draft model's tree and retrieved continuations, fused into one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sdk.runtimes.generation.contracts import (
    DETERMINISTIC,
    NOTHING,
    ROOT,
    Drafter,
    DraftTree,
    Outcome,
    Request,
)
from sdk.runtimes.generation.siblings import top_tokens
from sdk.runtimes.generation.trees import TreeBuilder

FORGET = 0.9
"""Weight of the past in a part's calibration, per round."""


class FusedDrafter:
    """One tree under one budget, of the best guesses of several drafters.

    Where the first one has a distribution for the next token (a model), the others' guesses are
    pruned to the branches that begin with one of its `prune_top` most probable tokens. Paths that
    several guessed are there once. How often each part is right about the next token, against how
    often it says so, sets what its scores weigh.
    """

    sampling, chain = DETERMINISTIC, False

    def __init__(self, first: Drafter, *others: Drafter, prune_top: int = 8) -> None:
        self._parts = [_Part(drafter) for drafter in (first, *others)]
        self._prune_top = prune_top

    @property
    def forward_passes(self) -> int:
        """Of all parts."""
        return sum(part.drafter.forward_passes for part in self._parts)

    def begin(self, request: Request) -> None:
        """Start all parts."""
        for part in self._parts:
            part.drafter.begin(request)

    def propose(self, context: Sequence[int], budget: int) -> DraftTree:
        """The best nodes of all parts' trees; each part may fill the budget."""
        builder = TreeBuilder()
        likely: set[int] | None = None
        for part in self._parts:
            part.tree = part.drafter.propose(context, budget)
            part.merge_into(builder, likely)
            q = self._parts[0].tree.proposal(ROOT)
            likely = None if q is None else set(top_tokens(q, self._prune_top))
        return builder.build(budget)

    def observe(self, outcome: Outcome) -> None:
        """All parts see what became of the fused draft."""
        for part in self._parts:
            part.calibrate(outcome.committed[0])
            part.drafter.observe(outcome)


@dataclass(slots=True)
class _Part:
    """A drafter, its last tree, and how far its scores can be trusted."""

    drafter: Drafter
    tree: DraftTree = NOTHING
    right: float = 1.0
    claimed: float = 1.0

    def scores(self) -> Sequence[float]:
        """The tree's own, or halves per level where it has none."""
        return self.tree.scores or [0.5**depth for depth in self.tree.depths()]

    def calibrate(self, token: int) -> None:
        """Compare what was claimed for the next token with what it was."""
        first = [node for node, parent in enumerate(self.tree.parents) if parent == ROOT]
        if first:
            scores = self.scores()
            hit = any(self.tree.tokens[node] == token for node in first)
            self.right = FORGET * self.right + hit
            self.claimed = FORGET * self.claimed + min(1.0, sum(scores[node] for node in first))
        self.tree = NOTHING

    def merge_into(self, builder: TreeBuilder, likely: set[int] | None) -> None:
        """Add the tree's nodes; of the root's children only the `likely` ones and theirs."""
        tree, scores, depths = self.tree, self.scores(), self.tree.depths()
        trust = self.right / self.claimed
        places = {ROOT: ROOT}
        for node, (token, parent) in enumerate(zip(tree.tokens, tree.parents, strict=True)):
            pruned = parent == ROOT and likely is not None and token not in likely
            if parent in places and not pruned:
                score = min(1.0, scores[node] * trust ** depths[node])
                places[node] = builder.add(places[parent], token, score)


DRAFTER = FusedDrafter
