"""The one loop. Each round the target reads the last token and the tree that a drafter guessed
behind it, in one forward pass, and a verifier says which guesses stay and what comes after them.

Plain decoding is the loop without a drafter. Nothing is given out that was not verified, and what
is given out does not depend on the drafter: not in law, and with `sample_match` not in any token.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from sdk.errors import InputError
from sdk.runtimes.generation.budget import Fixed
from sdk.runtimes.generation.cached import Cached
from sdk.runtimes.generation.config import GenerationConfig
from sdk.runtimes.generation.contracts import (
    DETERMINISTIC,
    NOTHING,
    ROOT,
    BudgetPolicy,
    Chance,
    Constraint,
    Drafter,
    DraftTree,
    Outcome,
    Request,
    Verifier,
)
from sdk.runtimes.generation.rows import NodeRows
from sdk.runtimes.generation.statistics import Statistics
from sdk.runtimes.generation.transforms import LogitsTransform, Transforms
from sdk.runtimes.generation.trees import as_chain, checked, legal
from sdk.runtimes.generation.uniforms import Uniforms
from sdk.runtimes.generation.verifiers import check_pair, choose

EOS, STOP, LENGTH, CANCELLED = "eos", "stop", "length", "cancelled"


class Token(NamedTuple):
    """One token of the output."""

    id: int
    from_draft: bool
    logprob: float | None = None
    """Under the model, before any transform; where the request asks for it."""


class Generation:
    """One request: iterate it once for its tokens, as they come.

    `finish_reason` is empty while it runs; then "eos", "stop", "length" (of the output or of the
    context) or "cancelled", which leaving the loop early is as well. The cache stays usable and
    holds all tokens but the last, whatever ended it. `chance` stands in for that of the seed;
    `source` is what an encoder read, for drafters that copy from it. `begun` is output that there
    is already: `tokens` begin with it, and it counts as new tokens.
    """

    def __init__(
        self,
        cached: Cached,
        prompt: Sequence[int],
        config: GenerationConfig,
        *,
        drafter: Drafter | None = None,
        verifier: Verifier | None = None,
        budget: BudgetPolicy | None = None,
        constraint: Constraint | None = None,
        transforms: Sequence[LogitsTransform] = (),
        cancelled: Callable[[], bool] = lambda: False,
        chance: Chance | None = None,
        source: Sequence[int] = (),
        begun: Sequence[int] = (),
    ) -> None:
        sampling = DETERMINISTIC if drafter is None else drafter.sampling
        chain = drafter is None or drafter.chain
        self.verifier = verifier or choose(sampling, greedy=config.greedy, chain=chain)
        check_pair(sampling, self.verifier, greedy=config.greedy)
        self.statistics, self.finish_reason = Statistics(prompt_tokens=len(prompt)), ""
        self._cached, self._config, self._drafter = cached, config, drafter
        self._budget = budget or Fixed()
        self._source = tuple(source)
        self._cancelled, self._chance = cancelled, chance or Uniforms(config.seed)
        self._transforms = Transforms(config, constraint=constraint, extra=transforms)
        self._context, self._prompt_length = [*prompt, *begun], len(prompt)
        self._ends = frozenset((*config.eos, *config.stop_tokens))
        self._end = self._prompt_length + config.max_new_tokens
        self._started = False

    @property
    def tokens(self) -> list[int]:
        """The output so far."""
        return self._context[self._prompt_length :]

    def __iter__(self) -> Iterator[Token]:
        if self._started:
            raise InputError("A generation runs once.", fix="make another one")
        self._started = True
        with self._cached.in_use():
            start = time.perf_counter()
            self._begin()
            self.statistics.prefill_ms = self.statistics.total_ms = since(start)
            try:
                yield from self._rounds()
            finally:
                self.finish_reason = self.finish_reason or CANCELLED
                self._cached.rollback(len(self._context) - 1)

    def _rounds(self) -> Iterator[Token]:
        while not self._finished():
            start = time.perf_counter()
            found = self._round()
            self.statistics.total_ms += since(start)
            self.statistics.ttft_ms = self.statistics.ttft_ms or self.statistics.total_ms
            yield from found

    def _begin(self) -> None:
        """Read the prompt but for its last token, which the first round reads."""
        self._cached.check(self._context)
        missing = self._cached.align(self._context)
        self.statistics.cached_tokens = len(self._context) - len(missing)
        self._state = self._transforms.resume(self._context, len(self.tokens))
        if self._config.max_new_tokens == 0:
            return
        self._cached.extend(missing[:-1])
        if self._drafter is not None:
            self._passes = self._drafter.forward_passes
            self._drafter.begin(self._request())
            self._budget.begin()

    def _request(self) -> Request:
        session = self._cached.session
        given = getattr(session, "given_width", 0)
        return Request(
            prompt=tuple(self._context),
            vocabulary=session.vocabulary,
            transforms=self._transforms,
            chance=self._chance,
            ends=self._ends,
            features=session.features if given else None,  # type: ignore[attr-defined]
            begun=len(self.tokens),
            source=self._source,
        )

    def _finished(self) -> bool:
        if self.finish_reason:
            return True
        length = len(self._context)
        if length >= self._end or length > self._cached.session.capacity:
            self.finish_reason = LENGTH
        elif self._cancelled():
            self.finish_reason = CANCELLED
        return bool(self.finish_reason)

    def _left(self) -> int:
        return self._end - len(self._context)

    def _round(self) -> list[Token]:
        root = self._context[-1]
        begin = time.perf_counter()
        tree = self._draft()
        start = time.perf_counter()
        step = self._cached.feed_tree(root, tree)
        end = time.perf_counter()
        draft_ms, verify_ms = 1e3 * (start - begin), 1e3 * (end - start)
        rows = NodeRows(tree, step.logits, self._transforms, self._state, self._ends)
        verdict = self.verifier.verify(tree, rows, self._chance, len(self._context))
        more = (verdict.token,)
        found = self._tokens_of(tree, verdict.path, more, rows)
        self._cached.keep(root, tree, verdict.path)
        committed = self._advance(found, rows, verdict.path, more)
        self._learn(
            Outcome(tree, verdict, committed, rows, draft_ms, verify_ms, step.features, since(end))
        )
        return found

    def _draft(self) -> DraftTree:
        """What to verify; never more than the context, the request and the budget have room for."""
        drafter, forced = self._drafter, self._forced()
        if forced:
            return as_chain(forced[: self._room()])
        budget = 0 if drafter is None else self._budget.next()
        if budget > 0:
            budget = min(budget, self._room())
        if drafter is None or budget <= 0:
            self.statistics.rounds_off += drafter is not None
            return NOTHING
        tree = drafter.propose(self._context, budget)
        tree = checked(tree, budget, self._cached.session.vocabulary, drafter)
        self.statistics.rounds_without_guess += not tree
        return self._budget.trim(legal(tree, self._transforms, self._state))

    def _room(self) -> int:
        """Tokens that may be fed behind the root."""
        session = self._cached.session
        room = min(session.capacity - len(self._context), self._left() - 1, self._cached.widest - 1)
        return max(room, 0)

    def _forced(self) -> Sequence[int]:
        """Tokens that a constraint leaves no choice about: free drafts, all accepted."""
        constraint = self._transforms.constraint
        return () if constraint is None else constraint.forced(self._state.constraint)

    def _tokens_of(
        self, tree: DraftTree, path: Sequence[int], more: Sequence[int], rows: NodeRows
    ) -> list[Token]:
        """The tokens of `path` and then `more`, cut where the output ends."""
        found = [Token(tree.tokens[node], from_draft=True) for node in path]
        found += [Token(token, from_draft=False) for token in more]
        del found[self._left() :]
        for index, token in enumerate(found):
            if token.id in self._ends:
                self.finish_reason = EOS if token.id in self._config.eos else STOP
                del found[index + 1 :]
                break
        if self._config.logprobs:
            for index, (node, token) in enumerate(zip((ROOT, *path), found, strict=False)):
                found[index] = token._replace(logprob=rows.logprob(node, token.id))
        return found

    def _advance(
        self, found: Sequence[Token], rows: NodeRows, path: Sequence[int], more: Sequence[int]
    ) -> tuple[int, ...]:
        """Go on to the end of `path` and `more`; the tokens that came."""
        committed = tuple([token.id for token in found])
        self._context += committed
        self.statistics.new_tokens += len(committed)
        state = rows.state(path[-1] if path else ROOT)
        if not self.finish_reason and state is not None:
            for token in more:
                state = self._transforms.advance(state, token)
            self._state = state
        return committed

    def _learn(self, outcome: Outcome) -> None:
        self.statistics.count(outcome)
        if self._drafter is None:
            return
        self._budget.observe(outcome)
        self.statistics.predicted_speedup = self._budget.predicted_speedup
        self._drafter.observe(outcome)
        self.statistics.draft_forward_passes = self._drafter.forward_passes - self._passes


def since(start: float) -> float:
    """Milliseconds."""
    return 1000 * (time.perf_counter() - start)
