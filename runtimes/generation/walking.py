"""The way through a draft tree, which all verifiers share: at each node, which child, or what else.

A rule sees one node: the target's row p, the siblings below the node, and the row q that they were
drawn from. It returns a token with the law p, and prefers the siblings. Walking down as long as the
token is a sibling keeps the law of every token, whatever the rule.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from sdk.errors import InputError
from sdk.runtimes.generation.contracts import (
    DETERMINISTIC,
    ROOT,
    Chance,
    DraftTree,
    Row,
    TargetRows,
    Verdict,
)
from sdk.runtimes.generation.uniforms import EMIT


@dataclass(frozen=True, slots=True)
class Place:
    """The chances of one token position."""

    chance: Chance
    position: int

    def accept(self, probability: float, sibling: int) -> bool:
        """Whether `sibling`, an index from 0, passes its test."""
        return self.chance.accept(probability, self.position, EMIT + 1 + sibling)

    def draw(self, row: Row) -> int:
        """The token that the round emits here."""
        return self.chance.draw(row, self.position, EMIT)


@dataclass(frozen=True, slots=True)
class Choice:
    """What a rule decided at one node."""

    token: int
    tested: int
    """How many siblings were looked at."""
    sibling: int | None = None
    """Which sibling `token` is; None for the first that has it, if any."""


class Rule(Protocol):
    """One node's decision; `q` is None only where the siblings are deterministic."""

    def __call__(self, p: Row, q: Row, siblings: Sequence[int], place: Place) -> Choice:
        """Choose a token with the law of `p`."""
        ...


def match(p: Row, siblings: Sequence[int], place: Place) -> Choice:
    """Draw from p as plain decoding does; a sibling is accepted if it is the token drawn."""
    token = place.draw(p)
    tested = siblings.index(token) + 1 if token in siblings else len(siblings)
    return Choice(token, tested)


def walk(
    tree: DraftTree, target: TargetRows, chance: Chance, position: int, rule: Rule | None
) -> Verdict:
    """Apply `rule` from the root down; `match` where it is None or the tree is deterministic."""
    if tree.sampling == DETERMINISTIC:
        rule = None
    path: list[int] = []
    node, evaluated = ROOT, 0
    while below := tree.children(node):
        siblings = [tree.tokens[child] for child in below]
        place = Place(chance, position + len(path))
        choice = _choose(tree, target.row(node), node, siblings, place, rule)
        evaluated += choice.tested
        index = choice.sibling
        if index is None:
            if choice.token not in siblings:
                return Verdict(tuple(path), choice.token, evaluated, bonus=False)
            index = siblings.index(choice.token)
        node = below[index]
        path.append(node)
    token = Place(chance, position + len(path)).draw(target.row(node))
    return Verdict(tuple(path), token, evaluated, bonus=True)


def _choose(
    tree: DraftTree,
    p: Row,
    node: int,
    siblings: Sequence[int],
    place: Place,
    rule: Rule | None,
) -> Choice:
    if rule is None:
        return match(p, siblings, place)
    q = tree.proposal(node)
    if q is None:
        raise InputError(
            "A sampled draft comes without the distribution it was drawn from.",
            expected=f"probs for each of {len(tree)} nodes and the root",
            got=f"none at node {node}",
        )
    return rule(p, q, siblings, place)


def ratio(numerator: float, denominator: float) -> float:
    """min(1, numerator / denominator), where 0 / 0 is 0."""
    return min(1.0, numerator / denominator) if numerator > 0 and denominator > 0 else 0.0


def residual(p: Row, q: Row) -> Row:
    """norm((p - q)+); p itself where nothing is left, which rounding can leave of p = q."""
    left = np.maximum(p - q, 0.0)
    total = left.sum()
    return left / total if total > 0 else p


class RuleVerifier:
    """A verifier that is a rule; the walk does the rest."""

    lossless = True
    accepts: frozenset[str]

    def rule(self, p: Row, q: Row, siblings: Sequence[int], place: Place) -> Choice:
        """Choose a token with the law of `p`."""
        raise NotImplementedError

    def verify(self, tree: DraftTree, target: TargetRows, chance: Chance, position: int) -> Verdict:
        """Walk down `tree`."""
        return walk(tree, target, chance, position, self.rule)
