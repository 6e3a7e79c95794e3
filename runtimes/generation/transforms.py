"""From a model's logits to the distribution that tokens are drawn from: one pipeline for all.

Target and draft share it, along every path of a draft tree: states are values, so each node has its
own. The order is Hugging Face's: penalties, bans, temperature, top-k, top-p, min-p. A constraint's
mask and further transforms come before the temperature.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from sdk.errors import GenerationError, InputError
from sdk.runtimes.generation.config import GenerationConfig
from sdk.runtimes.generation.contracts import Constraint, LogitRows, Logits, Row
from sdk.runtimes.generation.history import History
from sdk.runtimes.generation.sampling import native

Scores = NDArray[np.float64]

NUCLEUS = 1024
"""Tokens that top-p sorts first; only a flatter distribution needs all of them sorted."""
ROUNDING = 1e-12
"""The share of top-p by which sums may be off, in whatever order they are added."""


class DeadEndError(GenerationError):
    """Every token is banned: nothing may come next."""


class LogitsTransform(Protocol):
    """A function of the logits and of all tokens so far; what it remembers is in the history."""

    def __call__(self, scores: Scores, history: History) -> Scores:
        """[V] to [V]; it may write into `scores`. Minus infinity bans a token."""
        ...


@dataclass(frozen=True, slots=True)
class State:
    """Where one path stands."""

    history: History
    constraint: Any = None


class Transforms:
    """The pipeline of one request."""

    def __init__(
        self,
        config: GenerationConfig,
        *,
        constraint: Constraint | None = None,
        extra: Sequence[LogitsTransform] = (),
    ) -> None:
        self.constraint, self.greedy = constraint, config.greedy
        self._config = config
        self._penalties, self._extra = _penalties(config), tuple(extra)
        self._idle = not self._penalties and not extra and constraint is None
        for transform in extra:
            if getattr(transform, "greedy_only", False) and not config.greedy:
                raise InputError(
                    f"{type(transform).__name__} takes the best token, it does not sample.",
                    expected="temperature 0",
                    got=f"temperature {config.temperature}",
                )

    def start(self, prompt: Sequence[int]) -> State:
        """The state behind the prompt."""
        start = None if self.constraint is None else self.constraint.start()
        return State(History(prompt), start)

    def resume(self, context: Sequence[int], begun: int) -> State:
        """The state behind a prompt and `begun` tokens of output."""
        start = len(context) - begun
        state = self.start(context[:start])
        for token in context[start:]:
            state = self.advance(state, token)
        return state

    def advance(self, state: State, token: int) -> State:
        """The state one token on, or `state` where nobody asks for it; `state` stays usable."""
        if self._idle:
            return state
        after = state.constraint
        if self.constraint is not None:
            after = self.constraint.advance(after, token)
        return State(state.history.append(token), after)

    def apply(self, state: State, logits: Logits) -> Row:
        """The distribution of the next token; a single 1 where the request is greedy."""
        if self.greedy:
            row = np.zeros(len(logits))
            row[self.best(state, logits)] = 1.0
            return row
        if self._idle:
            check_finite(float(logits.max()))
            return truncated(logits, self._config)
        return truncated(self._scores(state, logits), self._config)

    def best(self, state: State, logits: Logits) -> int:
        """The most probable next token; the first of equals."""
        if not self._idle:
            return int(self._scores(state, logits).argmax())
        token = int(logits.argmax())  # of a NaN, where there is one
        check_finite(logits.item(token))
        return token

    def best_of_all(self, logits: LogitRows) -> list[int] | None:
        """`best` of each row at once, not yet checked; None where it depends on the state."""
        if not self._idle or not isinstance(logits, np.ndarray):
            return None
        tokens: list[int] = logits.argmax(-1).tolist()
        return tokens

    def likely(self, state: State, logits: Logits) -> Row:
        """The distribution before temperature and truncation: a draft's ranking of its guesses."""
        return softmax(self._scores(state, logits))

    def _scores(self, state: State, logits: Logits) -> Scores:
        check_finite(float(logits.max()))
        scores = logits.astype(np.float64)
        for penalty in self._penalties:
            scores = penalty(scores, state.history)
        if self.constraint is not None:
            scores[~self.constraint.allowed(state.constraint)] = -np.inf
        for transform in self._extra:
            scores = transform(scores, state.history)
        if scores.max() == -np.inf:
            raise DeadEndError(
                "No token may come next.",
                expected="at least one token that neither the constraint nor min_new_tokens bans",
                got=f"all {len(scores)} tokens banned after {len(state.history.output)} new ones",
                fix="loosen the constraint, or let it end earlier",
            )
        return scores


def check_finite(largest: float) -> None:
    """GenerationError where the largest logit of a row is none."""
    if not math.isfinite(largest):
        raise GenerationError(
            "The model's logits are not numbers.",
            expected="finite logits",
            got=f"{largest} as the largest",
            fix="verify the artifact with `edge verify`; a float16 overflow looks like this",
        )


def softmax(scores: Scores) -> Row:
    """[V] to a distribution; minus infinity becomes exactly 0."""
    row: Row = np.exp(scores - scores.max())
    row /= row.sum()
    return row


def truncated(scores: Scores | Logits, config: GenerationConfig) -> Row:
    """The distribution at the request's temperature, on the tokens that its truncations leave."""
    fast = native()
    found = None if fast is None else fast.row(scores, config)
    return by_numpy(scores, config) if found is None else found


def by_numpy(logits: Scores | Logits, config: GenerationConfig) -> Row:
    """`truncated` without native code."""
    scores = logits.astype(np.float64) / config.temperature
    row = _top_k(scores, config.top_k) if 0 < config.top_k < len(scores) else softmax(scores)
    if config.top_p < 1:
        row = _nucleus(row, config.top_p)
    if config.min_p > 0:
        row[row < config.min_p * row.max()] = 0.0
        row /= row.sum()
    return row


def _top_k(scores: Scores, k: int) -> Row:
    """Softmax over the tokens that score at least what the k-th does."""
    kept = np.flatnonzero(scores >= np.partition(scores, -k)[-k])
    row = np.zeros(len(scores))
    row[kept] = softmax(scores[kept])
    return row


def _nucleus(row: Row, mass: float) -> Row:
    """Only the most probable tokens before which less than `mass` lies; equals by their ids."""
    candidates = np.flatnonzero(row)
    if len(candidates) > NUCLEUS:
        head = np.flatnonzero(row >= np.partition(row, -NUCLEUS)[-NUCLEUS])
        candidates = head if row[head].sum() >= mass else candidates
    order = candidates[np.argsort(-row[candidates], kind="stable")]
    before = np.cumsum(row[order]) - row[order]
    kept = order[before < mass * (1 - ROUNDING)]
    nucleus = np.zeros(len(row))
    nucleus[kept] = row[kept] / row[kept].sum()
    return nucleus


def _penalties(config: GenerationConfig) -> tuple[LogitsTransform, ...]:
    steps: list[LogitsTransform] = []
    if config.repetition_penalty != 1:
        steps.append(RepetitionPenalty(config.repetition_penalty))
    if config.presence_penalty != 0:
        steps.append(PresencePenalty(config.presence_penalty))
    if config.min_new_tokens and config.eos:
        steps.append(MinNewTokens(config.min_new_tokens, config.eos))
    return tuple(steps)


@dataclass(frozen=True, slots=True)
class RepetitionPenalty:
    """CTRL's (arXiv:1909.05858): the logits of tokens of prompt and output go down."""

    factor: float

    def __call__(self, scores: Scores, history: History) -> Scores:
        """A token that occurs twice is penalised once."""
        seen = history.tokens
        found = scores[seen]
        scores[seen] = np.where(found > 0, found / self.factor, found * self.factor)
        return scores


@dataclass(frozen=True, slots=True)
class PresencePenalty:
    """A constant off the logits of tokens that the output has."""

    amount: float

    def __call__(self, scores: Scores, history: History) -> Scores:
        """A token that occurs twice is penalised once."""
        seen = history.output
        scores[seen] = scores[seen] - self.amount
        return scores


@dataclass(frozen=True, slots=True)
class MinNewTokens:
    """No end before the output has `count` tokens."""

    count: int
    eos: tuple[int, ...]

    def __call__(self, scores: Scores, history: History) -> Scores:
        """Bans the end-of-sequence tokens."""
        if len(history.output) < self.count:
            scores[list(self.eos)] = -np.inf
        return scores
