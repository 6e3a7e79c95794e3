"""Which nodes of a draft bring more than they cost to read."""

from __future__ import annotations

import math
from collections.abc import Sequence

from sdk.runtimes.generation.calibration import Calibration
from sdk.runtimes.generation.contracts import DETERMINISTIC, NOTHING, DraftTree
from sdk.runtimes.generation.trees import restricted

MARGIN = 1.03
"""By what factor more nodes must promise more: promises and costs are off by some per cent."""
RECENT = 0.1
"""Weight of a round in what drafts have brought."""


class Trimmer:
    """Cuts drafts down to what pays, by the chance of each node and the cost of width.

    `costs` are those of passes over one token, two and so on, in passes over one.
    """

    def __init__(self, costs: Sequence[float]) -> None:
        self._costs = costs
        self._claims = Calibration()
        self._used, self._brought, self._spent = (len(costs) - 1) / 2, 1.5, 1.0
        self.proposed = NOTHING
        """The round's draft before it was cut, if it could be."""
        self.speedup = 1.0
        """Of the round over a plain one, as it was predicted."""

    @property
    def asked(self) -> int:
        """Nodes that a draft should have: more than were of use lately, so that it can grow."""
        return min(len(self._costs) - 1, 2 + math.ceil(2 * self._used))

    def pays(self, draft_cost: float) -> bool:
        """Whether drafts have lately brought more than they cost, making them included."""
        return self._brought > self._spent + draft_cost

    def trim(self, tree: DraftTree) -> DraftTree:
        """The nodes that pay; all where there are no scores, or where they were drawn by chance."""
        self.proposed = NOTHING
        if not tree.scores or tree.sampling != DETERMINISTIC:
            return tree
        self.proposed = tree
        chances = self._claims.chances(tree)
        best = sorted(range(len(tree)), key=chances.__getitem__, reverse=True)  # a parent first
        count, brought, self.speedup = 0, 1.0, 1.0
        kept = brought
        for size, node in enumerate(best[: len(self._costs) - 1], start=1):
            brought += chances[node]
            if brought / self._costs[size] > MARGIN * self.speedup:
                count, kept, self.speedup = size, brought, brought / self._costs[size]
        self._used += RECENT * (count - self._used)
        self._brought += RECENT * (kept - self._brought)
        self._spent += RECENT * (self._costs[count] - self._spent)
        return restricted(tree, sorted(best[:count]))

    def learn(self, committed: Sequence[int]) -> int:
        """From what came behind the draft's root: how many of its guesses were right."""
        proposed, self.proposed = self.proposed, NOTHING
        return self._claims.learn(proposed, committed)
