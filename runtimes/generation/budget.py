"""How much to draft."""

from __future__ import annotations

from sdk.runtimes.generation.contracts import Outcome


class Fixed:
    """Always the same."""

    def __init__(self, num_draft_tokens: int = 4) -> None:
        self.num_draft_tokens = num_draft_tokens

    def next(self) -> int:
        """The same as ever."""
        return self.num_draft_tokens

    def observe(self, outcome: Outcome) -> None:
        """Nothing to learn."""
