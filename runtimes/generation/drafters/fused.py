"""RASD (arXiv:2503.03434): a draft model's tree and retrieved continuations, fused into one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

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

FORGET = 0.95
"""Weight of the past in a part's calibration, per round."""
LEAST = 0.05
"""Branches whose claims are trusted less than this are left out."""


class FusedDrafter:
    """One tree under one budget, of the best guesses of several drafters.

    Where the first one has a distribution for the next token (a model), the others' guesses are
    pruned to the branches that begin with one of its `prune_top` most probable tokens. Paths that
    several guessed are there once. How often each part is right about the next token, against how
    often it says so, sets what its scores weigh; and so, apart, for branches that are pruned (our
    addition): where they turn out right after all, because the model is weak or the text is copied,
    they come back with the weight that they have earned.
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
            part.likely = likely
            part.merge_into(builder)
            q = self._parts[0].tree.proposal(ROOT)
            likely = None if q is None else set(top_tokens(q, self._prune_top))
        return builder.build(budget)

    def observe(self, outcome: Outcome) -> None:
        """All parts see what became of the fused draft."""
        for part in self._parts:
            part.calibrate(outcome.committed[0])
            part.drafter.observe(outcome)


@dataclass(slots=True)
class _Trust:
    """How often claims came true, against how often they should have."""

    right: float
    claimed: float = 1.0

    @property
    def factor(self) -> float:
        return self.right / self.claimed

    def learn(self, claims: Sequence[float], *, hit: bool) -> None:
        """Claims of one round, if there were any."""
        if claims:
            self.right = FORGET * self.right + hit
            self.claimed = FORGET * self.claimed + min(1.0, sum(claims))


@dataclass(slots=True)
class _Part:
    """A drafter, its last tree, and how far its scores can be trusted."""

    drafter: Drafter
    tree: DraftTree = NOTHING
    likely: set[int] | None = None
    """What the model holds to be likely next; None for all tokens."""
    kept: _Trust = field(default_factory=lambda: _Trust(1.0))
    pruned: _Trust = field(default_factory=lambda: _Trust(0.0))
    """Of branches that the model holds to be unlikely: none at first."""

    def scores(self) -> Sequence[float]:
        """The tree's own, or halves per level where it has none."""
        return self.tree.scores or [0.5**depth for depth in self.tree.depths()]

    def calibrate(self, token: int) -> None:
        """Compare what was claimed for the next token with what it was."""
        tree, scores = self.tree, self.scores()
        first = [node for node, parent in enumerate(tree.parents) if parent == ROOT]
        for trust, nodes in (
            (self.kept, [node for node in first if self._kept(node)]),
            (self.pruned, [node for node in first if not self._kept(node)]),
        ):
            hit = any(tree.tokens[node] == token for node in nodes)
            trust.learn([scores[node] for node in nodes], hit=hit)
        self.tree = NOTHING

    def merge_into(self, builder: TreeBuilder) -> None:
        """Add the tree's nodes, with what their branch's claims have been worth."""
        tree, scores, depths = self.tree, self.scores(), self.tree.depths()
        places, trusts = {ROOT: ROOT}, dict[int, float]()
        for node, (token, parent) in enumerate(zip(tree.tokens, tree.parents, strict=True)):
            if parent == ROOT:
                trusts[node] = (self.kept if self._kept(node) else self.pruned).factor
            elif parent in trusts:
                trusts[node] = trusts[parent]
            if parent in places and trusts[node] >= LEAST:
                score = min(1.0, scores[node] * trusts[node] ** depths[node])
                places[node] = builder.add(places[parent], token, score)

    def _kept(self, node: int) -> bool:
        return self.likely is None or self.tree.tokens[node] in self.likely


DRAFTER = FusedDrafter
