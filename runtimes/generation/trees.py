"""Putting draft trees together and cutting them down."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from sdk.errors import GenerationError
from sdk.runtimes.generation.contracts import DETERMINISTIC, NOTHING, ROOT, DraftTree
from sdk.runtimes.generation.transforms import State, Transforms
from sdk.runtimes.generation.tree_shapes import is_tree


class TreeBuilder:
    """A trie of deterministic guesses: a path that is there already is not added again."""

    def __init__(self) -> None:
        self._tokens: list[int] = []
        self._parents: list[int] = []
        self._scores: list[float] = []
        self._nodes: dict[tuple[int, int], int] = {}

    def __len__(self) -> int:
        return len(self._tokens)

    def add(self, parent: int, token: int, score: float) -> int:
        """The node of `token` below `parent`; a path found twice keeps the better score."""
        node = self._nodes.setdefault((parent, token), len(self._tokens))
        if node < len(self._tokens):
            self._scores[node] = max(self._scores[node], score)
            return node
        self._tokens.append(token)
        self._parents.append(parent)
        self._scores.append(score)
        return node

    def build(self, budget: int) -> DraftTree:
        """The `budget` nodes of the best scores, none without its parent."""
        scores = self._capped()
        whole = DraftTree(
            tuple(self._tokens), tuple(self._parents), DETERMINISTIC, (), tuple(scores)
        )
        if len(scores) <= budget:
            return whole
        best = sorted(range(len(scores)), key=lambda node: (-scores[node], node))[:budget]
        return restricted(whole, sorted(best))

    def _capped(self) -> list[float]:
        """Scores that fall along each path, so that the best nodes are a tree."""
        capped: list[float] = []
        for score, parent in zip(self._scores, self._parents, strict=True):
            capped.append(score if parent == ROOT else min(score, capped[parent]))
        return capped


def restricted(tree: DraftTree, nodes: Iterable[int]) -> DraftTree:
    """A deterministic tree of some of its nodes, given in order; those without parents go too."""
    nodes = list(nodes)
    if nodes and nodes[-1] == len(nodes) - 1:
        return _beginning(tree, len(nodes))
    place = {ROOT: ROOT}
    for node in nodes:
        if tree.parents[node] in place:
            place[node] = len(place) - 1
    del place[ROOT]
    if not place:
        return NOTHING
    new = {ROOT: ROOT, **place}
    return DraftTree(
        tuple(tree.tokens[node] for node in place),
        tuple(new[tree.parents[node]] for node in place),
        tree.sampling,
        (tree.probs[0], *([None] * len(place))) if tree.probs else (),
        tuple(tree.scores[node] for node in place) if tree.scores else (),
    )


def _beginning(tree: DraftTree, count: int) -> DraftTree:
    """The first nodes: their parents are among them."""
    if count == len(tree):
        return tree
    probs = (tree.probs[0], *([None] * count)) if tree.probs else ()
    scores = tree.scores[:count]
    return DraftTree(tree.tokens[:count], tree.parents[:count], tree.sampling, probs, scores)


def legal(tree: DraftTree, transforms: Transforms, state: State) -> DraftTree:
    """Without the guesses that the constraint refuses: they would cost the target's time.

    Only deterministic trees: a sampled one was drawn from a distribution that has the constraint
    in it, and taking nodes away would change how it was drawn.
    """
    constraint = transforms.constraint
    if constraint is None or tree.sampling != DETERMINISTIC:
        return tree
    states = {ROOT: state.constraint}
    for node, (token, parent) in enumerate(zip(tree.tokens, tree.parents, strict=True)):
        if parent in states and constraint.permits(states[parent], token):
            states[node] = constraint.advance(states[parent], token)
    return restricted(tree, [node for node in states if node != ROOT])


def checked(tree: DraftTree, budget: int, vocabulary: int, drafter: object) -> DraftTree:
    """`tree`, or GenerationError where a drafter broke its promise."""
    tokens, parents = tree.tokens, tree.parents
    known = not tokens or (min(tokens) >= 0 and max(tokens) < vocabulary)
    if len(tokens) <= budget and known and len(parents) == len(tokens) and is_tree(parents):
        return tree
    raise GenerationError(
        f"{type(drafter).__name__} made an unusable draft.",
        expected=f"at most {budget} tokens below {vocabulary}, each behind its parent",
        got=f"tokens {list(tree.tokens)}, parents {list(tree.parents)}",
    )


def as_chain(tokens: Sequence[int], scores: Sequence[float] = ()) -> DraftTree:
    """A deterministic chain; `NOTHING` where there are no tokens."""
    return DraftTree.chain(tokens, scores=scores) if tokens else NOTHING
