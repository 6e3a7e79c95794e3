"""LUD (arXiv:2405.15208) without loss: the target guesses the rest of its lexical unit itself.

A model that was trained for it predicts, at placeholders behind a text, the tokens after the next.
The paper commits what it is sure of. Here (our reading) the placeholders are nodes of the draft
tree: below the last token, and below each guess, hangs a chain of them. The pass that verifies the
guesses so makes the next ones, wherever it turns out that they end, and what is given out is
verified like any other draft. A placeholder is no guess: it stays only if the model itself says it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from sdk.errors import InputError
from sdk.runtimes.generation.contracts import (
    DETERMINISTIC,
    NOTHING,
    ROOT,
    DraftTree,
    Outcome,
    Request,
)


class LexicalUnitDrafter:
    """Guesses by placeholders. `placeholder` is their token, `span` how many follow a token.

    A guess of which the model is less sure than `confidence` ends the unit. A budget of n^2 + 2n
    has room for n guesses with n placeholders everywhere: 3, 8 or 15. With `lossless=False`
    `Model.generate` decodes as the paper does: units of tokens that are each more probable than
    `confidence`, given out unverified.
    """

    sampling, chain, forward_passes = DETERMINISTIC, False, 0

    def __init__(
        self, placeholder: int, *, span: int = 3, confidence: float = 0.0, lossless: bool = True
    ) -> None:
        if span < 1:
            raise InputError("span is too small.", expected="at least 1", got=span)
        self.placeholder, self.span, self.confidence = placeholder, span, confidence
        self.lossless = lossless
        self._guesses: list[tuple[int, float]] = []

    def begin(self, request: Request) -> None:
        """InputError where the placeholder is none of the target's tokens."""
        self.check(request.vocabulary)
        self._guesses = []

    def check(self, vocabulary: int) -> None:
        """InputError unless the placeholder is one of the target's tokens."""
        if not 0 <= self.placeholder < vocabulary:
            raise InputError(
                "The placeholder is no token of the target.",
                expected=f"0 to {vocabulary - 1}",
                got=self.placeholder,
            )

    def propose(self, context: Sequence[int], budget: int) -> DraftTree:  # noqa: ARG002
        """The guesses of the last round, and placeholders everywhere for those of the next."""
        span = min(self.span, max(1, math.isqrt(budget + 1) - 1))
        count = min(len(self._guesses), span, max(0, (budget - span) // (span + 1)))
        if budget < 1:
            return NOTHING
        tokens, parents = [token for token, _ in self._guesses[:count]], list(range(-1, count - 1))
        for node in range(ROOT, count):
            below = node
            for _ in range(min(span, budget - len(tokens))):
                tokens.append(self.placeholder)
                parents.append(below)
                below = len(tokens) - 1
        return DraftTree(tuple(tokens), tuple(parents), DETERMINISTIC)

    def observe(self, outcome: Outcome) -> None:
        """Read the placeholders below the last accepted node."""
        tree, target = outcome.tree, outcome.target
        node = outcome.verdict.path[-1] if outcome.verdict.path else ROOT
        self._guesses, sure = [], 1.0
        while (below := self._placeholder_below(tree, node)) is not None:
            token = target.best(below)
            sure *= math.exp(target.logprob(below, token))
            if token == self.placeholder or sure < self.confidence:
                break
            self._guesses.append((token, sure))
            node = below

    def _placeholder_below(self, tree: DraftTree, node: int) -> int | None:
        return next((n for n in tree.children(node) if tree.tokens[n] == self.placeholder), None)


DRAFTER = LexicalUnitDrafter
