"""Prompt lookup: what followed the last time that the context ended like this."""

from __future__ import annotations

from collections.abc import Sequence

from sdk.runtimes.generation.contracts import (
    DETERMINISTIC,
    NOTHING,
    DraftTree,
    Outcome,
    Request,
)
from sdk.runtimes.generation.trees import as_chain

LONGEST = 8
"""Tokens that agree, from which more make it no surer."""


class PromptLookupDrafter:
    """Copies from prompt and output, behind the latest earlier occurrence of the longest n-gram.

    A copy that reaches the end of the context goes on with itself, as a text that repeats would.
    """

    sampling, chain, forward_passes = DETERMINISTIC, True, 0

    def __init__(self, *, max_ngram_size: int = 3, num_draft_tokens: int = 16) -> None:
        self._sizes = range(1, max_ngram_size + 1)
        self._most = num_draft_tokens
        self._behind: dict[tuple[int, ...], int] = {}
        self._known = 0

    def begin(self, request: Request) -> None:  # noqa: ARG002  the protocol's
        """Forget the last request."""
        self._behind, self._known = {}, 0

    def propose(self, context: Sequence[int], budget: int) -> DraftTree:
        """A chain; nothing where not even the last token was seen before."""
        self._learn(context)
        for size in reversed(self._sizes):
            start = self._behind.get(tuple(context[-size:]))
            if start is not None:
                tokens = _copy(context, start, min(budget, self._most))
                return as_chain(tokens, _scores(_matched(context, start), len(tokens)))
        return NOTHING

    def observe(self, outcome: Outcome) -> None:
        """The next context says it all."""

    def _learn(self, context: Sequence[int]) -> None:
        """Index the n-grams that end before the last token: those have something behind them."""
        for end in range(max(self._known, 1), len(context)):
            for size in self._sizes[:end]:
                self._behind[tuple(context[end - size : end])] = end
        self._known = len(context)


def _matched(context: Sequence[int], start: int) -> int:
    """How many tokens before `start` are those at the context's end."""
    count = 1
    while count < LONGEST and count < start and context[start - 1 - count] == context[-1 - count]:
        count += 1
    return count


def _scores(matched: int, count: int) -> list[float]:
    """A token is surer the more before it agree, and so the deeper it is where those above hold."""
    scores, score = [], 1.0
    for size in range(matched, matched + count):
        score *= 1 - 0.5 ** min(size, LONGEST)
        scores.append(score)
    return scores


def _copy(context: Sequence[int], start: int, count: int) -> list[int]:
    tokens = list(context[start : start + count])
    while len(tokens) < count:
        tokens.append(tokens[start + len(tokens) - len(context)])
    return tokens


DRAFTER = PromptLookupDrafter
