"""How often the next token can be among n siblings at best, and how often each verifier has it so.

A diagnostic, for one row p of the target and one row q of the draft. "Towards Optimal Multi-draft
Speculative Decoding" (arXiv:2502.18779): with P(H) the target's mass on a set H of tokens and Q(H)
the probability that all siblings are in H, no verifier accepts more than

    1 + min over H of P(H) - Q(H),

and the least H is a prefix of the tokens in the order of falling q / p.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from sdk.errors import InputError
from sdk.runtimes.generation.contracts import DETERMINISTIC, GREEDY, IID, WITHOUT_REPLACEMENT, Row
from sdk.runtimes.generation.draft_sets import draft_sets
from sdk.runtimes.generation.siblings import top_tokens, without
from sdk.runtimes.generation.verifiers.k_seq import accepted_share, least_rho
from sdk.runtimes.generation.walking import ratio, residual

NODES = np.exp(np.arange(-36.0, 80.0, 0.05))
"""Times at which the draft's exponential clocks are looked at (trapezoids in the logarithm)."""


def optimal_acceptance(p: Row, q: Row, n: int, sampling: str) -> float:
    """The most that any verifier of n siblings drawn from q can accept; O(V log V).

    Siblings drawn without replacement cost O(V n) quadratures.
    """
    if sampling == DETERMINISTIC:
        return float(p[top_tokens(q, n)].sum())
    if sampling == GREEDY:
        return greedy_acceptance(p, q, n)
    if sampling not in (IID, WITHOUT_REPLACEMENT):
        raise InputError("There is no such way to draw siblings.", got=sampling)
    with np.errstate(divide="ignore", invalid="ignore"):
        order = np.argsort(-np.where(q > 0, q / p, 0.0), kind="stable")
    mass = np.cumsum(p[order])
    inside = np.cumsum(q[order])
    if sampling == IID:
        within = np.minimum(inside, 1.0) ** n
    else:
        within = all_within(q[order], min(n, int(np.count_nonzero(q))))
    return float(1 + min(0.0, (mass - within).min()))


def all_within(q: Row, n: int) -> NDArray[np.float64]:
    """[V]: Pr(n distinct draws are all among the first k tokens), for k = 1 to V.

    Draws without replacement are the first n of exponential clocks with the rates q. All are within
    H where the n-th clock of H rings before the first one outside, whose rate is 1 - q(H).
    """
    counts = np.zeros((n, len(NODES)))
    counts[0] = 1.0  # counts[j]: Pr(j clocks of the prefix have rung), j < n
    left = np.append(np.cumsum(q[:0:-1])[::-1], 0.0)  # a difference would lose what is small
    found = np.ones(len(q))
    for k, rate in enumerate(q):
        rung = -np.expm1(-rate * NODES)
        counts[1:] += rung * (counts[:-1] - counts[1:])
        counts[0] *= 1 - rung
        if left[k] > 0:
            weights = 0.05 * left[k] * NODES * np.exp(-left[k] * NODES)
            found[k] = max(0.0, weights @ (1 - counts.sum(0)))
    return found


def subset_acceptance(p: Row, q: Row, n: int, sampling: str) -> float:
    """The bound by its definition, over all 2^V sets H: for checking, V at most 12 or so."""
    sets = draft_sets(q, n, sampling)
    tokens = range(len(p))
    subsets = itertools.chain.from_iterable(
        itertools.combinations(tokens, size) for size in range(len(p) + 1)
    )
    return 1 + min(
        float(p[list(subset)].sum())
        - sum(probability for drawn, probability in sets.items() if drawn <= set(subset))
        for subset in subsets
    )


def greedy_acceptance(p: Row, q: Row, n: int) -> float:
    """n - 1 certain siblings and one draw: attained by `greedy_draft`, so it is the optimum too."""
    top = top_tokens(q, n - 1)
    return float(
        p[top].sum() + np.minimum(without(p, *top) * _mass(p, top), without(q, *top)).sum()
    )


def speculative_acceptance(p: Row, q: Row, n: int = 1) -> float:
    """One draw, whatever n: sum min(p, q)."""
    return rrs_acceptance(p, q, 1) if n else 0.0


def rrs_acceptance(p: Row, q: Row, n: int) -> float:
    """1 - prod over j of (1 - sum min(r_j, q))."""
    refused = 1.0
    for _ in range(n):
        refused *= 1 - float(np.minimum(p, q).sum())
        p = residual(p, q)
    return 1 - refused


def k_seq_acceptance(p: Row, q: Row, n: int) -> float:
    """1 - (1 - beta)^n: of the tests. A correction that is a sibling by luck comes on top."""
    beta = accepted_share(p, q, least_rho(p, q, n))
    return 1 - (1 - beta) ** n


def rrs_without_replacement_acceptance(
    p: Row, q: Row, n: int, *, draws: int = 2000, seed: int = 0
) -> float:
    """By recursion over the rejected tokens; over `draws` random ones where they are too many."""
    if np.count_nonzero(q) ** (n - 1) <= 10 * draws:
        return _rrsw(p, q, n)
    rng = np.random.default_rng(seed)
    return 1 - float(np.mean([_rrsw_refused(p, q, n, rng) for _ in range(draws)]))


def match_acceptance(p: Row, q: Row, n: int, sampling: str) -> float:
    """`sample_match`: how likely an independent draw of p is among the siblings; small supports."""
    sets = draft_sets(q, n, sampling)
    return sum(weight * float(p[list(drawn)].sum()) for drawn, weight in sets.items())


ACCEPTANCE: dict[str, Callable[[Row, Row, int], float]] = {
    "speculative_sampling": speculative_acceptance,
    "rrs": rrs_acceptance,
    "k_seq": k_seq_acceptance,
    "rrs_without_replacement": rrs_without_replacement_acceptance,
    "greedy_draft": greedy_acceptance,
}
"""verifier -> its acceptance for (p, q, n)."""


def _mass(p: Row, tokens: list[int]) -> float:
    """What p has outside `tokens`."""
    return float(p.sum() - p[tokens].sum())


def _rrsw(p: Row, q: Row, n: int) -> float:
    accepted = float(np.minimum(p, q).sum())
    if n == 1:
        return accepted
    left = residual(p, q)
    for token in np.flatnonzero(q > p).tolist():
        rejected = float(q[token] - p[token])
        below = without(q, token)
        accepted += rejected * _rrsw(left, below, n - 1) if below.any() else 0.0
    return accepted


def _rrsw_refused(p: Row, q: Row, n: int, rng: np.random.Generator) -> float:
    """Pr(all are refused) for one draw of the siblings but the last, whose mean is exact."""
    refused = 1.0
    for _ in range(n - 1):
        token = int(rng.choice(len(q), p=q))
        refused *= 1 - ratio(p[token], q[token])
        if refused == 0:
            return 0.0
        p, q = residual(p, q), without(q, token)
        if not q.any():
            return refused
    return refused * (1 - float(np.minimum(p, q).sum()))
