"""ADED (arXiv:2407.12021): a tree of guesses from a table of trigrams that learns as it goes."""

from __future__ import annotations

import random
from collections.abc import Sequence

from sdk.errors import InputError
from sdk.runtimes.generation.contracts import (
    DETERMINISTIC,
    NOTHING,
    DraftTree,
    Outcome,
    Request,
)
from sdk.runtimes.generation.tree_search import best_first, monte_carlo
from sdk.runtimes.generation.trigram_table import TrigramTable

BEST_FIRST, MONTE_CARLO = SEARCHES = ("best_first", "monte_carlo")


class TrigramDrafter:
    """The table outlives the request: text of a kind makes the next of its kind easier.

    `search` is "best_first", or "monte_carlo" as in the paper, which costs milliseconds and whose
    trees are 4 deep there.
    """

    sampling, chain, forward_passes = DETERMINISTIC, False, 0

    def __init__(
        self,
        table: TrigramTable,
        *,
        search: str = BEST_FIRST,
        tree_depth: int = 8,
        adapt: bool = True,
    ) -> None:
        if search not in SEARCHES:
            raise InputError("There is no such search.", expected=" or ".join(SEARCHES), got=search)
        self.table = table
        self._search, self._depth, self._adapt = search, tree_depth, adapt

    def begin(self, request: Request) -> None:
        """Nothing is forgotten."""
        if request.vocabulary != self.table.vocabulary:
            raise InputError(
                "The trigram table is of another vocabulary than the target.",
                expected=f"{request.vocabulary} tokens",
                got=f"{self.table.vocabulary} tokens",
            )
        self._random = random.Random(0)

    def propose(self, context: Sequence[int], budget: int) -> DraftTree:
        """A tree below the last two tokens."""
        if self._adapt:
            self.table.learn(context)
        if len(context) < 2:
            return NOTHING
        pair, table, depth = (context[-2], context[-1]), self.table.successors, self._depth
        if self._search == BEST_FIRST:
            return best_first(table, pair, budget=budget, depth=depth)
        return monte_carlo(table, pair, budget=budget, depth=depth, random=self._random)

    def observe(self, outcome: Outcome) -> None:
        """The next context says it all."""


DRAFTER = TrigramDrafter
