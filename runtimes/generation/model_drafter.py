"""A smaller model as the drafter: a chain, or a tree of siblings drawn in one of the ways."""

from __future__ import annotations

from collections.abc import Sequence

from sdk.errors import InputError
from sdk.runtimes.generation.cached import Cached
from sdk.runtimes.generation.contracts import (
    DETERMINISTIC,
    IID,
    NOTHING,
    ROOT,
    SAMPLINGS,
    DecoderSession,
    DraftTree,
    Logits,
    Outcome,
    Request,
    Row,
)
from sdk.runtimes.generation.siblings import draw
from sdk.runtimes.generation.transforms import DeadEndError, State, Transforms
from sdk.runtimes.generation.trees import restricted

FEW = 16
"""Tokens that one pass reads to draft behind; those before them need no logits."""
REMEMBERED = 4
"""Proposals that can be taken back: the last one, and those that it was built on."""


class ModelDrafter:
    """Drafts with another session of the same vocabulary.

    `sampling` is how siblings are drawn where the request samples; a greedy request gets the most
    probable tokens. `confidence_threshold` ends a chain before a token of which the draft is less
    sure than that. The draft's cache follows the context: what the target took is kept, what it
    refused is rolled back, and what the draft has not fed yet is fed with the next token.
    """

    ahead = True
    """Whether it can draft behind tokens that the target has not read."""

    def __init__(
        self,
        session: DecoderSession,
        *,
        sampling: str = IID,
        branching_factor: int = 1,
        tree_depth: int = 4,
        confidence_threshold: float = 0.0,
    ) -> None:
        if sampling not in SAMPLINGS:
            raise InputError(
                "There is no such way to draw siblings.",
                expected=" or ".join(SAMPLINGS),
                got=sampling,
            )
        self.sampling, self.chain = sampling, branching_factor == 1
        self.forward_passes = 0
        self.cached = Cached(session)
        self._branching, self._depth = branching_factor, tree_depth
        self._threshold = confidence_threshold

    def begin(self, request: Request) -> None:
        """Nothing is read before the first draft, of which there may be none."""
        if request.vocabulary != self.cached.session.vocabulary:
            raise InputError(
                "The draft model has another vocabulary than the target.",
                expected=f"{request.vocabulary} tokens",
                got=f"{self.cached.session.vocabulary} tokens",
                fix="draft with a model of the target's tokenizer",
            )
        self._request, self._trusted = request, 0
        self._state = request.transforms.resume(request.prompt, request.begun)
        self._seen = len(request.prompt)
        self._earlier = {self._seen: self._state}
        self._random = self.sampling != DETERMINISTIC and not request.transforms.greedy

    def propose(self, context: Sequence[int], budget: int) -> DraftTree:
        """A chain or a tree; nothing where the draft's own cache has no room."""
        budget = min(budget, self.cached.session.capacity - len(context))
        self._read(context)
        if budget < 1:
            return NOTHING
        logits = self._catch_up(context)
        return self._chain(logits, budget) if self.chain else self._tree(logits, budget)

    def observe(self, outcome: Outcome) -> None:
        """The next context says it all."""

    def rewind(self, length: int) -> None:
        """Take back what was proposed after more than `length` tokens of context."""
        self._trusted = min(self._trusted, length)
        self._earlier = {seen: state for seen, state in self._earlier.items() if seen <= length}
        self._seen = max(self._earlier)
        self._state = self._earlier[self._seen]

    def _read(self, context: Sequence[int]) -> None:
        """Bring the transforms' state to the context's end, and note it for a while."""
        for token in context[self._seen :]:
            self._state = self._request.transforms.advance(self._state, token)
        self._seen = len(context)
        self._earlier[self._seen] = self._state
        while len(self._earlier) > REMEMBERED:
            del self._earlier[min(self._earlier)]

    def _catch_up(self, context: Sequence[int]) -> Logits:
        """Feed what the cache lacks of the context: the prompt, or what was said since."""
        missing = self.cached.align(context, trusted=self._trusted)
        self._trusted = len(context)
        few = min(FEW, self.cached.widest)
        self.cached.extend(missing[:-few])
        return self._feed(missing[-few:])

    def _feed(self, tokens: Sequence[int]) -> Logits:
        self.forward_passes += 1
        return self.cached.feed(tokens).logits[len(tokens) - 1]

    def _chain(self, logits: Logits, budget: int) -> DraftTree:
        growing = Growing(self._request.transforms, self._state)
        node = ROOT
        while True:
            q = self._row(growing.state(node), logits)
            growing.probs[node + 1] = q
            if q is None or q.max() < self._threshold:
                break
            [node] = self._spread(growing, node, q, 1)
            if len(growing) == budget or growing.tokens[node] in self._request.ends:
                break
            logits = self._feed((growing.tokens[node],))
        return growing.build(self._drawn())

    def _tree(self, logits: Logits, budget: int) -> DraftTree:
        """Level by level. Drawn siblings use the budget up, the likeliest parents first; the most
        probable ones are all tried, and the best of all levels are kept.
        """
        growing = Growing(self._request.transforms, self._state)
        level, rows = [ROOT], {ROOT: logits}
        for depth in range(self._depth):
            below: list[int] = []
            for node in growing.best(level, self._branching if not self._random else len(level)):
                count = min(self._branching, budget - len(growing) * self._random)
                below += self._spread(
                    growing, node, self._row(growing.state(node), rows[node]), count
                )
            level = [node for node in below if growing.tokens[node] not in self._request.ends]
            if depth + 1 == self._depth or not self._goes_on(growing, level, budget):
                break
            rows = self._look(growing, level)
        return growing.build(self._drawn(), budget)

    def _goes_on(self, growing: Growing, level: Sequence[int], budget: int) -> bool:
        """Whether the draft has room for the tree and a further level could be part of it."""
        if not level or len(self.cached.tokens) + len(growing) > self.cached.session.capacity:
            return False
        if self._random:
            return len(growing) < budget
        ranked = sorted(growing.scores, reverse=True)
        return (
            len(ranked) < budget or growing.scores[growing.best(level, 1)[0]] > ranked[budget - 1]
        )

    def _spread(self, growing: Growing, node: int, q: Row | None, count: int) -> list[int]:
        """Give `node` up to `count` children; how many is settled before they are drawn."""
        if count < 1 or q is None:
            return []
        growing.probs[node + 1] = q
        position = self._seen + growing.depth(node)
        chance = self._request.chance
        lane = node + 1
        tokens = draw(q, count, sampling=self._drawn(), chance=chance, position=position, lane=lane)
        return [growing.add(node, token, float(q[token])) for token in tokens]

    def _look(self, growing: Growing, level: Sequence[int]) -> dict[int, Logits]:
        """Logits behind the nodes of `level`; the tree is fed whole and none of it committed."""
        self.forward_passes += 1
        step = self.cached.session.forward(growing.tokens, growing.parents)
        return {node: step.logits[node] for node in level}

    def _row(self, state: State, logits: Logits) -> Row | None:
        """What guesses are drawn from; None where a constraint lets nothing follow."""
        transforms = self._request.transforms
        try:
            return (
                transforms.likely(state, logits)
                if transforms.greedy
                else transforms.apply(state, logits)
            )
        except DeadEndError:
            return None  # if the target comes here, it says so

    def _drawn(self) -> str:
        return self.sampling if self._random else DETERMINISTIC


class Growing:
    """A draft tree in the making, with the state of the transforms at each node."""

    def __init__(self, transforms: Transforms, state: State) -> None:
        self.tokens: list[int] = []
        self.parents: list[int] = []
        self.scores: list[float] = []
        self.probs: list[Row | None] = [None]
        self._transforms, self._states = transforms, {ROOT: state}

    def __len__(self) -> int:
        return len(self.tokens)

    def add(self, parent: int, token: int, probability: float) -> int:
        """A new node; its score is the product of the probabilities down to it."""
        self.tokens.append(token)
        self.parents.append(parent)
        self.scores.append(probability * (1.0 if parent == ROOT else self.scores[parent]))
        self.probs.append(None)
        return len(self.tokens) - 1

    def state(self, node: int) -> State:
        """Of the transforms, after `node`."""
        if node not in self._states:
            before = self.state(self.parents[node])
            self._states[node] = self._transforms.advance(before, self.tokens[node])
        return self._states[node]

    def depth(self, node: int) -> int:
        """0 for the root."""
        return 0 if node == ROOT else 1 + self.depth(self.parents[node])

    def best(self, nodes: Sequence[int], count: int) -> list[int]:
        """The `count` nodes of the best scores."""
        if nodes == [ROOT]:
            return [ROOT]
        return sorted(nodes, key=lambda node: -self.scores[node])[:count]

    def build(self, sampling: str, budget: int | None = None) -> DraftTree:
        """The tree; of a deterministic one the best `budget` nodes."""
        tokens, parents = tuple(self.tokens), tuple(self.parents)
        if sampling != DETERMINISTIC:
            return DraftTree(tokens, parents, sampling, tuple(self.probs), tuple(self.scores))
        tree = DraftTree(tokens, parents, sampling, tuple(self.probs), tuple(self.scores))
        return restricted(tree, sorted(self.best(range(len(self)), budget or len(self))))
