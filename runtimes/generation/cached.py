"""A session together with the tokens that its cache holds, kept from request to request."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from sdk.errors import GenerationError, InputError
from sdk.runtimes.generation.contracts import ROOT, DecoderSession, DraftTree, Step
from sdk.runtimes.generation.sessions import StepSession
from sdk.signature import Array


class Cached:
    """Whatever a new context has in common with the cache is not computed again."""

    def __init__(self, session: DecoderSession) -> None:
        self.session = session
        self.tokens: list[int] = []
        """The committed tokens, in the cache's order."""
        self._busy = threading.Lock()

    @property
    def widest(self) -> int:
        """Tokens of a pass at most: fewer than the context where shapes are fixed."""
        return int(getattr(self.session, "widest", self.session.capacity))

    def fork(self) -> Cached:
        """A cache of its own with the same tokens."""
        forked = Cached(self.session.fork())
        forked.tokens = list(self.tokens)
        return forked

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Hold the cache for one request; GenerationError where another request holds it."""
        if not self._busy.acquire(blocking=False):
            raise GenerationError(
                "Two requests at once share one cache.",
                expected="one request at a time per session",
                got="a request while another one is being generated",
                fix="finish or close the first one, or fork the session",
            )
        try:
            yield
        finally:
            self._busy.release()

    def align(self, context: Sequence[int], *, trusted: int = 0) -> list[int]:
        """Forget what `context` does not begin with, and return its tokens that are missing.

        At least the last one is: it is the next to be fed. The first `trusted` tokens of the cache
        are known to be those of `context`.
        """
        kept = min(_common(self.tokens, context, trusted), len(context) - 1)
        self.rollback(kept)
        return list(context[kept:])

    def rollback(self, length: int) -> None:
        """Keep the first `length` tokens."""
        if length < len(self.tokens):
            self.session.rollback(length)
            del self.tokens[length:]

    def read(self, source: Mapping[str, Array]) -> None:
        """Begin anew behind another source, given as the step's inputs for it."""
        self.rollback(0)
        if not isinstance(self.session, StepSession):
            raise InputError("This decoder attends to no source.", got=type(self.session).__name__)
        self.session.read(source)

    def extend(self, tokens: Sequence[int], **more: Any) -> None:
        """Feed and commit known tokens; a session may want `more` than them."""
        if tokens:
            self.session.extend(tokens, **more)
            self.tokens += tokens

    def feed(self, tokens: Sequence[int], **more: Any) -> Step:
        """Feed and commit a chain whose logits are wanted."""
        step = self.session.forward(tokens, **more)
        self.session.commit(range(len(tokens)))
        self.tokens += tokens
        return step

    def feed_tree(self, root: int, tree: DraftTree) -> Step:
        """Feed the last token of the context and the tree below it; `keep` commits."""
        if not tree:
            return self.session.forward((root,))
        tokens = (root, *tree.tokens)
        if tree.is_chain:
            return self.session.forward(tokens)
        return self.session.forward(tokens, (ROOT, *[parent + 1 for parent in tree.parents]))

    def keep(self, root: int, tree: DraftTree, path: Sequence[int]) -> None:
        """Commit the root and the nodes of `path`."""
        self.session.commit((0, *[node + 1 for node in path]))
        self.tokens.append(root)
        self.tokens += [tree.tokens[node] for node in path]

    def check(self, prompt: Sequence[int]) -> None:
        """InputError where the session cannot read `prompt`."""
        if not prompt:
            raise InputError("The prompt is empty.", expected="at least one token", got="none")
        if len(prompt) > self.session.capacity:
            raise InputError(
                "The prompt is longer than the model's context.",
                expected=f"at most {self.session.capacity} tokens",
                got=len(prompt),
            )
        if not 0 <= min(prompt) <= max(prompt) < self.session.vocabulary:
            raise InputError(
                "The prompt has tokens that the model does not know.",
                expected=f"0 to {self.session.vocabulary - 1}",
                got=f"{min(prompt)} to {max(prompt)}",
                fix="encode it with the model's own tokenizer",
            )


def _common(a: Sequence[int], b: Sequence[int], start: int) -> int:
    """Length of the longest common prefix, at least `start`."""
    end = min(len(a), len(b))
    start = min(start, end)
    if list(a[start:end]) == list(b[start:end]):
        return end
    return next(i for i in range(start, end) if a[i] != b[i])
