"""Growing a tree of guesses out of a table of successors, two ways."""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from sdk.runtimes.generation.contracts import ROOT, DraftTree
from sdk.runtimes.generation.trees import TreeBuilder
from sdk.runtimes.generation.trigram_table import STEP

Successors = Callable[[int, int], Mapping[int, float]]
Pair = tuple[int, int]


def shares(scores: Mapping[int, float]) -> dict[int, float]:
    """Scores as probabilities. What was not seen yet has the share of what was seen once."""
    total = sum(scores.values()) + STEP
    return {token: score / total for token, score in scores.items()}


def best_first(successors: Successors, pair: Pair, *, budget: int, depth: int) -> DraftTree:
    """The `budget` likeliest paths: a tree, since a path is never likelier than its beginning."""
    builder = TreeBuilder()
    heap: list[tuple[float, int, int, int, Pair, int]] = []
    count = 0

    def push(parent: int, pair: Pair, score: float, level: int) -> None:
        nonlocal count
        for token, share in shares(successors(*pair)).items():
            count += 1  # of equals the first pushed, not whatever tuples compare to
            heapq.heappush(heap, (-score * share, count, parent, token, (pair[1], token), level))

    push(ROOT, pair, 1.0, 1)
    while heap and len(builder) < budget:
        negative, _, parent, token, pair, level = heapq.heappop(heap)
        node = builder.add(parent, token, -negative)
        if level < depth:
            push(node, pair, -negative, level + 1)
    return builder.build(budget)


EXPLORATION, GROWTH = 32.0, 8.0
"""ADED's c1 and c2."""


@dataclass(slots=True)
class _Visited:
    """A path that the search has been to."""

    token: int
    pair: Pair
    prior: float
    value: float
    """The path's own table scores."""
    depth: int
    visits: int = 0
    reward: float = 0.0
    children: list[_Visited] = field(default_factory=list)

    def bound(self, parent_visits: int) -> float:
        """PUCT: the mean reward, and more for what is likely and little visited."""
        if self.visits == 0:
            return math.inf
        weight = EXPLORATION + math.log((parent_visits + GROWTH + 1) / GROWTH)
        return self.reward / self.visits + weight * self.prior * math.sqrt(parent_visits) / (
            1 + self.visits
        )


def monte_carlo(
    successors: Successors,
    pair: Pair,
    *,
    budget: int,
    depth: int,
    iterations: int = 150,
    random: random.Random,
) -> DraftTree:
    """Monte-Carlo tree search as in ADED; the nodes visited most are a tree, and the draft."""
    root = _Visited(ROOT, pair, 1.0, 0.0, 0)
    for _ in range(iterations):
        path = _select(root)
        leaf = path[-1]
        if leaf.depth < depth:
            _expand(leaf, successors)
            path += leaf.children[-1:]
        reward = 1 + _roll_out(path[-1], successors, depth, random)
        for node in path:
            node.visits += 1
            node.reward += reward
    builder = TreeBuilder()
    _collect(builder, root, ROOT, iterations)
    return builder.build(budget)


def _select(root: _Visited) -> list[_Visited]:
    path = [root]
    while path[-1].children:
        parent = path[-1]
        path.append(max(parent.children, key=lambda child: child.bound(parent.visits)))
    return path


def _expand(leaf: _Visited, successors: Successors) -> None:
    scores = successors(*leaf.pair)
    priors = shares(scores)
    leaf.children = [
        _Visited(token, (leaf.pair[1], token), priors[token], leaf.value + score, leaf.depth + 1)
        for token, score in scores.items()
    ]


def _roll_out(node: _Visited, successors: Successors, depth: int, random: random.Random) -> float:
    """Table scores of the path and of a random way on from it."""
    pair, value = node.pair, node.value
    for _ in range(node.depth, depth):
        scores = successors(*pair)
        if not scores:
            break
        [token] = random.choices(list(scores), list(scores.values()))
        pair, value = (pair[1], token), value + scores[token]
    return value


def _collect(builder: TreeBuilder, parent: _Visited, place: int, iterations: int) -> None:
    for child in parent.children:
        if child.visits:
            node = builder.add(place, child.token, child.visits / iterations)
            _collect(builder, child, node, iterations)
