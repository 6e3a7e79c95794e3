"""Copies from a source text: what an encoder read, or any text that an output follows closely.

Prompt lookup for encoder-decoder models, whose source is not in the decoder's context. The output
begins where the source does, as in aggressive decoding (Sun et al., arXiv:2106.04970); after that
its end is looked up in the source, the longest first, and of equals the one that lies behind where
the output was last in it, nearest first.
"""

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


class SourceLookupDrafter:
    """Takes the request's source, or `source` where it is given."""

    sampling, chain, forward_passes = DETERMINISTIC, True, 0

    def __init__(
        self,
        source: Sequence[int] | None = None,
        *,
        max_ngram_size: int = 3,
        num_draft_tokens: int = 10,
    ) -> None:
        self._given = source
        self._sizes, self._most = range(max_ngram_size, 0, -1), num_draft_tokens
        self._places: dict[tuple[int, ...], list[int]] = {}

    def begin(self, request: Request) -> None:
        """Index the n-grams of the source that have something behind them."""
        self._source = list(request.source if self._given is None else self._given)
        self._start, self._at, self._places = len(request.prompt) - request.begun, 0, {}
        for end in range(1, len(self._source)):
            for size in self._sizes:
                if size <= end:
                    gram = tuple(self._source[end - size : end])
                    self._places.setdefault(gram, []).append(end)

    def propose(self, context: Sequence[int], budget: int) -> DraftTree:
        """A chain; nothing where the output's end is not in the source."""
        count, output = min(budget, self._most), list(context[self._start :])
        if not output:
            return as_chain(self._source[:count])
        for size in self._sizes:
            places = self._places.get(tuple(output[-size:])) if size <= len(output) else None
            if places:
                self._at = next((place for place in places if place >= self._at), places[0])
                tokens, sure = self._source[self._at : self._at + count], 1 - 0.5**size
                return as_chain(tokens, [sure ** (i + 1) for i in range(len(tokens))])
        return NOTHING

    def observe(self, outcome: Outcome) -> None:
        """The next context says it all."""


DRAFTER = SourceLookupDrafter
