"""How long a drafter that does not pay is left alone."""

from __future__ import annotations

from sdk.runtimes.generation.contracts import Outcome

TRIES, OPENINGS = 0.02, 0.01
"""Shares of plain decoding that tries may take which bring nothing, and prompts read for them."""
LONG = 8
"""Times the longest rest that one may last which follows a prompt read in vain."""


class Rests:
    """Each twice as long as the last, from `first` to `longest` rounds; behind expensive tries
    until these are little of the time.
    """

    def __init__(self, first: int, longest: int) -> None:
        self.left = 0
        """Rounds of the present one."""
        self._first, self._longest, self._next = first, longest, first
        self._tries_ms = self._unpaid_ms = 0.0

    def start(self, step_ms: float) -> None:
        """Begin one; a plain step takes `step_ms`, 0 where that is not known."""
        tries = min(_rounds(self._tries_ms, TRIES * step_ms), self._longest)
        openings = min(_rounds(self._unpaid_ms, OPENINGS * step_ms), LONG * self._longest)
        self.left = max(self._next, tries, openings)
        self._next = min(2 * self._next, self._longest)
        self._tries_ms = self._unpaid_ms = 0.0

    def nap(self) -> None:
        """Begin the shortest one."""
        self.left = self._first

    def over(self) -> None:
        """Drafts pay: the next rest is a short one."""
        self._next = self._first

    def count(self, outcome: Outcome, opening_ms: float, plain_ms: float) -> None:
        """A round with a draft, for which reading the prompt took `opening_ms`; what it gained over
        plain rounds of `plain_ms` pays for that.
        """
        spent = outcome.draft_ms + outcome.verify_ms + outcome.other_ms
        gained = max(0.0, len(outcome.committed) * plain_ms - spent)
        self._tries_ms += outcome.draft_ms
        self._unpaid_ms = max(0.0, self._unpaid_ms + opening_ms - gained)


def _rounds(spent_ms: float, share_ms: float) -> int:
    """How many it takes until `share_ms` of each are as much as was spent."""
    return round(spent_ms / share_ms) if share_ms else 0
