"""What drafting has been worth: tokens in time, with drafts and without."""

from __future__ import annotations

from sdk.runtimes.generation.contracts import Outcome

FORGET, FORGET_PLAIN = 0.99, 0.8
"""Weight of the past, per round with a draft and per plain one: of those few are enough."""
ENOUGH, PLAIN = 48, 2
"""Rounds with drafts, and plain ones of a request, from which there is an opinion."""
OUTLIER = 3.0
"""Times the mean that a round may count: one that waited for a core says nothing of the others."""


class Worth:
    """Observed, where a budget predicts: a draft model takes the caches from the target, say.

    A plain round counts if the one before was plain too, so that neither a drafter nor the reading
    of the prompt was at work between two passes of the target.
    """

    def __init__(self) -> None:
        self._plain, self._drafting = Rate(FORGET_PLAIN), Rate(FORGET)
        self._disturbed, self._fresh = True, 0

    def begin(self) -> None:
        """A request starts: how fast the machine is may have changed. Engines prepare for the width
        of a plain pass in the first one behind a prompt, which so says nothing of the others.
        """
        self._disturbed, self._fresh = True, 0

    @property
    def knows_plain(self) -> bool:
        """Whether there were plain rounds enough to compare with."""
        return self._fresh >= PLAIN

    @property
    def speedup(self) -> float | None:
        """Of rounds with drafts over plain ones; None as long as too few are known."""
        if not self.knows_plain or self._drafting.count < ENOUGH:
            return None
        return self._drafting.tokens_per_ms / self._plain.tokens_per_ms

    def observe(self, outcome: Outcome, *, drafted: bool) -> None:
        """Count a round."""
        spent = outcome.draft_ms + outcome.verify_ms + outcome.other_ms
        if drafted:
            self._drafting.add(len(outcome.committed), spent)
        elif not self._disturbed:
            self._plain.add(len(outcome.committed), spent)
            self._fresh += 1
        self._disturbed = drafted

    def forget(self) -> None:
        """What drafts were worth; the next ones are judged for themselves."""
        self._drafting = Rate(FORGET)


class Rate:
    """Tokens over time, of recent rounds most."""

    def __init__(self, forget: float) -> None:
        self._forget, self.count = forget, 0
        self._weight = self._tokens = self._ms = 0.0

    @property
    def tokens_per_ms(self) -> float:
        """There must have been a round."""
        return self._tokens / self._ms

    def add(self, tokens: int, ms: float) -> None:
        """A round."""
        usual = self._ms / self._weight if self._weight else ms
        self.count += 1
        self._weight = self._forget * self._weight + 1
        self._tokens = self._forget * self._tokens + tokens
        self._ms = self._forget * self._ms + min(ms, OUTLIER * usual)
