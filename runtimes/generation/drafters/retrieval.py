"""REST (arXiv:2311.08252): what follows the context's end in a datastore, as a tree of counts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from sdk.errors import CorruptArtifactError, InputError
from sdk.runtimes.generation.contracts import (
    DETERMINISTIC,
    NOTHING,
    ROOT,
    DraftTree,
    Outcome,
    Request,
)
from sdk.runtimes.generation.datastore import Datastore
from sdk.runtimes.generation.storing import corrupt
from sdk.runtimes.generation.trees import TreeBuilder


class RetrievalDrafter:
    """Looks up the longest end of the context of `min_match` to `max_match` tokens.

    Of its occurrences `max_hits`, spread evenly over all, are followed for `tree_depth` tokens; a
    guess weighs as much as the share of them that it is in.
    """

    sampling, chain, forward_passes = DETERMINISTIC, False, 0

    def __init__(
        self,
        datastore: Datastore,
        *,
        max_match: int = 16,
        min_match: int = 2,
        tree_depth: int = 10,
        max_hits: int = 32,
    ) -> None:
        self.datastore = datastore
        self._least, self._most = min_match, max_match
        self._depth, self._max_hits = tree_depth, max_hits

    def begin(self, request: Request) -> None:
        """InputError where the datastore has another vocabulary."""
        if request.vocabulary != self.datastore.vocabulary:
            raise InputError(
                "The datastore is of another vocabulary than the target.",
                expected=f"{request.vocabulary} tokens",
                got=f"{self.datastore.vocabulary} tokens",
            )

    def propose(self, context: Sequence[int], budget: int) -> DraftTree:
        """A tree; nothing where even the shortest end does not occur."""
        length, ranks = self.datastore.longest(context, least=self._least, most=self._most)
        if not ranks:
            return NOTHING
        hits = ranks[:: -(-len(ranks) // self._max_hits)]
        depth = min(self._depth, budget)
        counts: Counter[tuple[int, ...]] = Counter()
        for rank in hits:
            text = self.datastore.text(rank, depth, skip=length)
            counts.update(tuple(text[: i + 1]) for i in range(len(text)))
        return self._tree(counts, len(hits), 1 - 0.5**length, budget)

    def observe(self, outcome: Outcome) -> None:
        """The next context says it all."""

    def _tree(
        self, counts: Counter[tuple[int, ...]], hits: int, sure: float, budget: int
    ) -> DraftTree:
        builder = TreeBuilder()
        nodes: dict[tuple[int, ...], int] = {(): ROOT}
        for path in sorted(counts, key=len):
            if not 0 <= path[-1] < self.datastore.vocabulary:
                raise self._outside(path[-1])
            score = sure ** len(path) * counts[path] / hits
            nodes[path] = builder.add(nodes[path[:-1]], path[-1], score)
        return builder.build(budget)

    def _outside(self, token: int) -> CorruptArtifactError:
        vocabulary = self.datastore.vocabulary
        return corrupt(self.datastore.path, expected=f"tokens below {vocabulary}", got=token)


DRAFTER = RetrievalDrafter
