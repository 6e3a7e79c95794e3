"""The best that any verifier can do, by linear programming: a reference, for small supports.

SpecTr (arXiv:2310.15141) states the problem. Siblings act as a set S: x(S, y) is the probability
that they are S and y in S is emitted, at most Pr(S) over y and at most p(y) over S; their sum is
maximised, and what it leaves of p is drawn from otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from sdk.errors import GenerationError, InputError
from sdk.extras import require
from sdk.runtimes.generation.contracts import SAMPLINGS, Chance, DraftTree, Row, TargetRows, Verdict
from sdk.runtimes.generation.draft_sets import draft_sets
from sdk.runtimes.generation.walking import Choice, Place, walk

Sets = Mapping[frozenset[int], float]
Plan = Mapping[frozenset[int], Row]


class OptimalTransport:
    """Exact and optimal for any way of drawing; costs a linear program per node."""

    lossless = True
    accepts = frozenset(SAMPLINGS)

    def __init__(self) -> None:
        require("scipy.optimize", purpose="optimal transport")

    def verify(self, tree: DraftTree, target: TargetRows, chance: Chance, position: int) -> Verdict:
        """Solve at each node on the way."""

        def rule(p: Row, q: Row, siblings: Sequence[int], place: Place) -> Choice:
            key = p.tobytes(), q.tobytes(), len(siblings), tree.sampling
            row = conditional(p, *_planned(*key), frozenset(siblings))
            return Choice(place.draw(row), len(siblings))

        return walk(tree, target, chance, position, rule)


@lru_cache(maxsize=64)
def _planned(p: bytes, q: bytes, n: int, sampling: str) -> tuple[Sets, Plan]:
    sets = draft_sets(np.frombuffer(q), n, sampling)
    return sets, plan(np.frombuffer(p), sets)


def conditional(p: Row, sets: Sets, plans: Plan, drawn: frozenset[int]) -> Row:
    """The law of the emitted token, given that the siblings are the set `drawn`."""
    if drawn not in sets:
        raise InputError(
            "The siblings cannot have been drawn from the draft's distribution.",
            expected=f"one of {len(sets)} sets",
            got=sorted(drawn),
        )
    left = np.maximum(p - sum(plans.values()), 0.0)
    row: Row = plans[drawn] / sets[drawn]
    missing = max(0.0, 1.0 - float(row.sum()))
    return row + left * (missing / left.sum()) if left.any() else row


def plan(p: Row, sets: Sets) -> Plan:
    """x(S, .) of an optimal plan, [V] for each S; it keeps both bounds to the last digit."""
    cells = [(row, token) for row, tokens in enumerate(sets) for token in sorted(tokens)]
    weights = np.array(list(sets.values()))
    table = np.zeros((len(sets), len(p)))
    rows, tokens = np.array(cells).T
    table[rows, tokens] = _solve(rows, tokens, weights, p)
    table *= np.minimum(1.0, p / np.maximum(table.sum(0), np.finfo(float).tiny))
    used = np.maximum(table.sum(1), np.finfo(float).tiny)
    table *= np.minimum(1.0, weights / used)[:, None]
    return dict(zip(sets, table, strict=True))


def _solve(
    rows: NDArray[np.int64], tokens: NDArray[np.int64], weights: Row, p: Row
) -> NDArray[np.float64]:
    optimize = require("scipy.optimize", purpose="optimal transport")
    sparse = require("scipy.sparse", purpose="optimal transport")
    cells, ones = np.arange(len(rows)), np.ones(len(rows))
    by_set = sparse.coo_array((ones, (rows, cells)), shape=(len(weights), len(rows)))
    by_token = sparse.coo_array((ones, (tokens, cells)), shape=(len(p), len(rows)))
    found = optimize.linprog(
        -ones,
        A_ub=sparse.vstack([by_set, by_token]).tocsr(),
        b_ub=np.concatenate([weights, p]),
        bounds=(0, None),
        method="highs",
    )
    if found.x is None:
        raise GenerationError("The linear program has no solution.", got=found.message)
    solution: NDArray[np.float64] = np.maximum(found.x, 0.0)
    return solution


VERIFIER = OptimalTransport
