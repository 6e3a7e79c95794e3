"""RASD (arXiv:2503.03434): a draft model's tree and retrieved continuations, fused into one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from sdk.runtimes.generation.calibration import Calibration
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
from sdk.runtimes.generation.trees import TreeBuilder, restricted

FORGET = 0.95
"""Weight of the past in what pruned branches are worth, per round."""
LEAST = 0.05
"""Branches whose claims are trusted less than this are left out."""


class FusedDrafter:
    """One tree under one budget, of the best guesses of several drafters.

    Where the first one has a distribution for the next token (a model), the others' guesses are
    pruned to the branches that begin with one of its `prune_top` most probable tokens. Paths that
    several guessed are there once. How often what a part claims came true sets what its claims
    weigh; and so, apart, for branches that are pruned (our addition): where they turn out right
    after all, because the model is weak or the text is copied, they come back with the weight that
    they have earned.
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
        for index, part in enumerate(self._parts):
            tree = part.propose(context, budget, likely)
            part.merge_into(builder)
            q = None if index else tree.proposal(ROOT)
            likely = likely if q is None else set(top_tokens(q, self._prune_top))
        return builder.build(budget)

    def observe(self, outcome: Outcome) -> None:
        """All parts see what became of the fused draft."""
        for part in self._parts:
            part.learn(outcome.committed)
            part.drafter.observe(outcome)


@dataclass(slots=True)
class _Part:
    """A drafter, its last tree, and what its claims have been worth."""

    drafter: Drafter
    tree: DraftTree = NOTHING
    unlikely: frozenset[int] = frozenset()
    """Of the tree's nodes, those below a first token that the model holds to be unlikely."""
    worth: Calibration = field(default_factory=Calibration)
    right: float = 0.0
    claimed: float = 1.0
    """Of first tokens that were unlikely: nothing is right at first."""

    def propose(self, context: Sequence[int], budget: int, likely: set[int] | None) -> DraftTree:
        """Its draft; pruned are the branches that do not begin with a likely token."""
        self.tree = tree = _scored(self.drafter.propose(context, budget))
        if likely is None:
            self.unlikely = frozenset()
        else:
            unlikely: set[int] = set()
            for node, (token, parent) in enumerate(zip(tree.tokens, tree.parents, strict=True)):
                if (token not in likely) if parent == ROOT else (parent in unlikely):
                    unlikely.add(node)
            self.unlikely = frozenset(unlikely)
        return tree

    def merge_into(self, builder: TreeBuilder) -> None:
        """Add the draft's nodes, each as likely as such claims came true."""
        tree, places = self.tree, {ROOT: ROOT}
        chances, pruned = self.worth.chances(tree), self.right / self.claimed
        for node, (token, parent) in enumerate(zip(tree.tokens, tree.parents, strict=True)):
            factor = pruned if node in self.unlikely else 1.0
            if parent in places and factor >= LEAST:
                score = min(1.0, factor * chances[node])
                places[node] = builder.add(places[parent], token, score)

    def learn(self, committed: Sequence[int]) -> None:
        """From what came behind the last draft."""
        tree = self.tree
        first = [node for node in self.unlikely if tree.parents[node] == ROOT]
        if first:
            chances = self.worth.chances(tree)
            hit = any(tree.tokens[node] == committed[0] for node in first)
            self.right = FORGET * self.right + hit
            self.claimed = FORGET * self.claimed + min(1.0, sum(chances[node] for node in first))
        kept = [node for node in range(len(tree)) if node not in self.unlikely]
        self.worth.learn(restricted(tree, kept) if self.unlikely else tree, committed)
        self.tree, self.unlikely = NOTHING, frozenset()


def _scored(tree: DraftTree) -> DraftTree:
    """With halves per level where the drafter has no idea."""
    if tree.scores or not tree:
        return tree
    return replace(tree, scores=tuple(0.5**depth for depth in tree.depths()))


DRAFTER = FusedDrafter
