"""PEARL (arXiv:2408.11850): the draft goes on while the target reads what it drafted before.

The target reads the last token and the guesses behind it; meanwhile the drafter guesses what comes
after those. The target's last row then judges the first of the new guesses. If that holds too, the
others are the next round's draft, and neither model ever waits for the other; if not, the next
round reads the correction alone while the drafter starts anew behind it.

Nothing is given out before it is verified, so there is nothing to drain at the end.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from sdk.errors import InputError
from sdk.runtimes.generation.cached import Cached
from sdk.runtimes.generation.config import GenerationConfig
from sdk.runtimes.generation.contracts import NOTHING, ROOT, DraftTree, Outcome
from sdk.runtimes.generation.loop import Generation, Token, since
from sdk.runtimes.generation.model_drafter import ModelDrafter
from sdk.runtimes.generation.rows import NodeRows
from sdk.runtimes.generation.trees import checked


class ParallelGeneration(Generation):
    """`Generation` with target and draft side by side, each best on a core of its own.

    For a `ModelDrafter` that drafts chains; the other parts are those of `Generation`.
    """

    def __init__(
        self,
        cached: Cached,
        prompt: Sequence[int],
        config: GenerationConfig,
        *,
        drafter: ModelDrafter,
        **parts: Any,
    ) -> None:
        if not drafter.chain:
            raise InputError(
                "Drafting in parallel is for chains.", expected="branching_factor 1", got="a tree"
            )
        if not drafter.ahead:
            raise InputError(
                "This drafter waits for the target.",
                expected="one that drafts behind tokens that the target has not read",
                got=type(drafter).__name__,
            )
        super().__init__(cached, prompt, config, drafter=drafter, **parts)
        self._ahead, self._waiting = drafter, NOTHING

    def _rounds(self) -> Iterator[Token]:
        with ThreadPoolExecutor(1, "draft") as self._worker:
            yield from super()._rounds()

    def _round(self) -> list[Token]:
        root, tree = self._context[-1], self._waiting_that_fits()
        start = time.perf_counter()
        drafting = self._guess_behind(tree)
        step = self._cached.feed_tree(root, tree)
        verify_ms, start = since(start), time.perf_counter()
        guess = NOTHING if drafting is None else drafting.result()
        draft_ms = since(start)  # that the target waited for it
        joined = _joined(tree, guess)
        fed = len(tree)
        rows = NodeRows(joined, step.logits, self._transforms, self._state, self._ends, fed=fed)
        verdict = self.verifier.verify(joined, rows, self._chance, len(self._context))
        held = bool(guess) and fed in verdict.path
        more = [] if held else [verdict.token]
        found = self._tokens_of(joined, verdict.path, more, rows)
        self._cached.keep(root, tree, [node for node in verdict.path if node < fed])
        self._waiting = _behind_first(guess) if held else NOTHING
        if not held:
            self._ahead.rewind(len(self._context) + len(verdict.path))
        committed = self._advance(found, rows, verdict.path, more)
        self._learn(Outcome(joined, verdict, committed, rows, draft_ms, verify_ms, step.features))
        return found

    def _waiting_that_fits(self) -> DraftTree:
        room = min(self._cached.session.capacity - len(self._context), self._left() - 1)
        return _first(self._waiting, max(room, 0))

    def _guess_behind(self, tree: DraftTree) -> Future[DraftTree] | None:
        """Start the drafter behind the guesses that the target is about to read."""
        budget = self._budget.next()
        if budget < 1:
            self.statistics.rounds_off += 1
            return None
        if tree and tree.tokens[-1] in self._ends:
            return None
        return self._worker.submit(self._guess, [*self._context, *tree.tokens], budget)

    def _guess(self, context: Sequence[int], budget: int) -> DraftTree:
        tree = self._ahead.propose(context, budget)
        return checked(tree, budget, self._cached.session.vocabulary, self._ahead)


def _first(tree: DraftTree, count: int) -> DraftTree:
    """The beginning of a chain."""
    if count >= len(tree):
        return tree
    return DraftTree.chain(
        tree.tokens[:count], sampling=tree.sampling, probs=tree.probs[: count + 1]
    )


def _behind_first(tree: DraftTree) -> DraftTree:
    """A chain without its first node."""
    return DraftTree.chain(tree.tokens[1:], sampling=tree.sampling, probs=tree.probs[1:])


def _joined(tree: DraftTree, guess: DraftTree) -> DraftTree:
    """A chain with the first node of another behind it."""
    if not guess:
        return tree
    tokens = (*tree.tokens, guess.tokens[0])
    proposals = [*tree.probs[: len(tree)], guess.proposal(ROOT), None]
    return DraftTree.chain(tokens, sampling=guess.sampling, probs=proposals if guess.probs else ())
