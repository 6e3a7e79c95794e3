"""LUD (arXiv:2405.15208) as the paper has it: what the model is sure of is given out unverified."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sdk.errors import InputError
from sdk.runtimes.generation.cached import Cached
from sdk.runtimes.generation.config import GenerationConfig
from sdk.runtimes.generation.contracts import (
    NOTHING,
    ROOT,
    Chance,
    DraftTree,
    TargetRows,
    Verdict,
)
from sdk.runtimes.generation.drafters.lexical_unit import LexicalUnitDrafter
from sdk.runtimes.generation.loop import Generation, Token
from sdk.runtimes.generation.transforms import State


class UnverifiedUnits:
    """Stands where a verifier does: there is none, and the result says so."""

    lossless = False
    accepts = frozenset({"deterministic"})

    def verify(self, tree: DraftTree, target: TargetRows, chance: Chance, position: int) -> Verdict:
        """One token of the target's law; what follows it is not verified."""
        return Verdict((), chance.draw(target.row(ROOT), position), 0, bonus=not tree)


class LossyLexicalUnitGeneration(Generation):
    """Each round reads the last unit and placeholders behind it, and gives out the next unit: its
    first token as plain decoding would, the others while each is more probable than `confidence`.

    With a confidence of 1 or more it is plain decoding.
    """

    def __init__(
        self,
        cached: Cached,
        prompt: Sequence[int],
        config: GenerationConfig,
        *,
        drafter: LexicalUnitDrafter,
        **parts: Any,
    ) -> None:
        if config.logprobs:
            raise InputError("Units that are not verified have no log-probabilities.")
        drafter.check(cached.session.vocabulary)
        parts.pop("budget", None)
        parts["verifier"] = UnverifiedUnits()
        super().__init__(cached, prompt, config, **parts)
        self._units = drafter
        self._unread = list(self._context[-1:])

    def _round(self) -> list[Token]:
        room = self._cached.session.capacity - len(self._context)
        span = max(0, min(self._units.span, room, self._left() - 1))
        fed = [*self._unread, *[self._units.placeholder] * span]
        step = self._cached.session.forward(fed)
        self._cached.session.commit(range(len(self._unread)))
        self._cached.tokens += self._unread
        rows = [step.logits[len(self._unread) - 1 + i] for i in range(span + 1)]
        found, state = self._unit(rows)
        self._unread = [token.id for token in found]
        self._context += self._unread
        self._state = state
        self.statistics.new_tokens += len(found)
        self.statistics.num_rounds += 1
        self.statistics.target_forward_passes += 1
        return found

    def _unit(self, rows: Sequence[Any]) -> tuple[list[Token], State]:
        """Tokens from the rows, up to the first of which the model is not sure."""
        state, found = self._state, list[Token]()
        for index, logits in enumerate(rows):
            if index == 0:
                row = self._transforms.apply(state, logits)
                token = self._chance.draw(row, len(self._context))
            else:
                row = self._transforms.likely(state, logits)
                token = int(row.argmax())
                if row[token] <= self._units.confidence:
                    break
            found.append(Token(token, index > 0))
            if token in self._ends:
                self.finish_reason = "eos" if token in self._config.eos else "stop"
                break
            state = self._transforms.advance(state, token)
        return found, state

    def _draft(self) -> DraftTree:
        return NOTHING
