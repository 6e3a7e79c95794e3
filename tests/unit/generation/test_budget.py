"""How much to draft, by formula and by what a simulated machine teaches."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import pytest
from toys import ToySession, markov, near

from sdk.errors import InputError
from sdk.runtimes.generation.budget import (
    Adaptive,
    CostTable,
    Fixed,
    Heuristic,
    best_length,
    expected_speedup,
    expected_tokens,
)
from sdk.runtimes.generation.cached import Cached
from sdk.runtimes.generation.config import GenerationConfig
from sdk.runtimes.generation.contracts import (
    NOTHING,
    BudgetPolicy,
    DraftTree,
    Outcome,
    Step,
    TargetRows,
    Verdict,
)
from sdk.runtimes.generation.loop import Generation
from sdk.runtimes.generation.model_drafter import ModelDrafter

INT8 = CostTable({1: 1.0, 2: 1.03, 4: 1.06, 8: 1.17, 16: 1.4, 32: 2.1})


class NoRows:
    """Nobody looks."""

    def row(self, node: int) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        raise AssertionError

    def best(self, node: int) -> int:
        raise AssertionError


ROWS: TargetRows = NoRows()


@pytest.mark.parametrize(("cost", "length"), [(0.01, 7), (0.02, 6), (0.05, 4), (0.1, 3)])
def test_best_lengths_are_those_of_online_speculative_decoding(cost: float, length: int) -> None:
    """At an acceptance of 0.6 and a target whose passes all cost the same (arXiv:2310.07177)."""
    assert best_length(0.6, cost) == length


def test_expected_tokens() -> None:
    assert expected_tokens(0.0, 5) == 1
    assert expected_tokens(1.0, 5) == 6
    assert expected_tokens(0.5, 2) == pytest.approx(1 + 0.5 + 0.25)
    assert best_length(0.1, 0.3) == 0
    assert best_length(0.6, 0.0, cost=INT8) > best_length(0.6, 0.1, cost=INT8)


def test_cost_tables() -> None:
    assert (INT8(1), INT8(2), INT8(16)) == (1.0, 1.03, 1.4)
    assert INT8(12) == pytest.approx((1.17 + 1.4) / 2)
    assert INT8(64) == pytest.approx(2.1 + 32 * 0.7 / 16)
    assert CostTable({1: 1.0})(9) == 1.0
    for wrong in ({2: 1.0}, {1: 2.0}, {1: 1.0, 2: 0.0}, {0: 1.0, 1: 1.0}):
        with pytest.raises(InputError, match="not costs"):
            CostTable(wrong)


def test_costs_by_the_clock() -> None:
    session = ToySession(markov(8, 1), 8, capacity=12)
    session.extend([1, 2])
    table = CostTable.measure(session, widths=(1, 2, 9, 17), runs=3)
    assert session.length == 2
    assert session.forwards == 9  # 17 does not fit
    assert table(1) == 1.0


def outcome(size: int, accepted: int, *, draft_ms: float = 0.0, verify_ms: float = 1.0) -> Outcome:
    tree = DraftTree.chain(range(size)) if size else NOTHING
    verdict = Verdict(tuple(range(accepted)), 0, min(size, accepted + 1), accepted == size)
    return Outcome(tree, verdict, (0,) * (accepted + 1), ROWS, draft_ms, verify_ms)


def test_waiting_for_a_core_is_no_cost() -> None:
    """Passes of four tokens and more always wait, as where they take longer than a turn."""

    class Busy(ToySession):
        def forward(self, tokens: Sequence[int], _parents: Sequence[int] | None = None) -> Step:
            end = time.process_time() + 0.001
            while time.process_time() < end:
                pass
            time.sleep(0.02 if len(tokens) >= 4 else 0)
            return Step(np.zeros((len(tokens), 8), np.float32))

    found = CostTable.measure(Busy(markov(8, 1), 8), widths=(1, 4), runs=25)
    assert found(4) < 2


def test_heuristic() -> None:
    policy = Heuristic(5, most=8)
    seen = []
    for accepted in ("all", "all", "none", "none", "none"):
        seen.append(policy.next())
        policy.observe(outcome(policy.next(), policy.next() if accepted == "all" else 0))
    policy.observe(outcome(0, 0))
    assert [*seen, policy.next()] == [5, 7, 8, 7, 6, 5]
    for _ in range(9):
        policy.observe(outcome(4, 0))
    assert policy.next() == 1


def simulate(
    policy: BudgetPolicy,
    alpha: float,
    *,
    rounds: int = 2000,
    draft_cost: float = 0.0,
    seed: int = 0,
) -> float:
    """Speed-up over plain decoding on a machine with INT8's costs, in its own time."""
    rng = np.random.default_rng(seed)
    tokens, spent = 0, 0.0
    for _ in range(rounds):
        size = policy.next()
        accepted = int(np.cumprod(rng.random(size) < alpha).sum())
        draft, verify = draft_cost * size, INT8(size + 1)
        policy.observe(outcome(size, accepted, draft_ms=draft, verify_ms=verify))
        tokens, spent = tokens + accepted + 1, spent + draft + verify
    return tokens / spent


@pytest.mark.parametrize("alpha", [0.0, 0.05, 0.3, 0.6, 0.8, 0.95])
@pytest.mark.parametrize("draft_cost", [0.0, 0.1, 0.5])
def test_adaptive_is_near_the_best_fixed_size_and_never_slower_than_none(
    alpha: float, draft_cost: float
) -> None:
    best = max(expected_speedup(alpha, length, draft_cost, INT8) for length in range(9))
    found = simulate(Adaptive(INT8), alpha, draft_cost=draft_cost)
    assert found > 0.94 * best
    assert found > 0.985


def test_adaptive_wakes_up() -> None:
    """After 500 rounds of text that cannot be guessed, text that can."""
    policy = Adaptive(INT8)
    simulate(policy, 0.0, rounds=500, draft_cost=0.1)
    assert simulate(policy, 0.9, rounds=1000, draft_cost=0.1) > 2


def test_adaptive_rests_longer_each_time() -> None:
    policy = Adaptive(INT8, cooldown=4, longest_cooldown=16)
    sizes = []
    for _ in range(120):
        sizes.append(policy.next())
        policy.observe(outcome(sizes[-1], 0, draft_ms=0.05 * sizes[-1]))
    probes = [i for i, size in enumerate(sizes) if size]
    assert sorted(np.diff(probes[-5:]).tolist()) == [1, 1, 16, 16]
    assert policy.predicted_speedup is not None
    assert policy.predicted_speedup < 1.02


def test_a_prompt_read_in_vain_is_not_read_again_soon() -> None:
    """Requests of 60 rounds, in each of which the first draft takes as long as ten steps: after the
    first request it is a hundredth of the time.
    """
    policy, spent = Adaptive(INT8), []
    for _ in range(40):
        policy.begin()
        first = True
        for _ in range(60):
            size = policy.next()
            spent.append((10.0 if first else 0.3) if size else 0.0)
            first = first and not size
            policy.observe(outcome(size, 0, draft_ms=spent[-1]))
    assert max(spent[:60]) > 0
    assert max(spent[60:]) > 0
    assert sum(spent[60:]) < 0.015 * len(spent[60:])


def test_expensive_tries_are_rare() -> None:
    """Each takes as long as five steps; what they take stays a small share from the start."""
    policy, spent = Adaptive(INT8), []
    for _ in range(600):
        size = policy.next()
        spent.append(5.0 if size else 0.0)
        policy.observe(outcome(size, 0, draft_ms=spent[-1]))
    assert sum(spent) > 0
    assert sum(spent) < 0.04 * len(spent)
    assert sum(spent[300:]) < 0.04 * 300


@pytest.mark.parametrize(("rounds", "drafts"), [(10, False), (200, True)])
def test_a_prompt_is_read_for_requests_that_are_long_enough(rounds: int, drafts: bool) -> None:
    """Reading it takes 20 steps; drafts of which one token holds save less than half of each."""
    policy = Adaptive(INT8)
    for _ in range(20):
        policy.begin()
        made = 0
        for _ in range(rounds):
            size = policy.next()
            policy.observe(outcome(size, min(size, 1), draft_ms=0 if made or not size else 20.0))
            made += size > 0
    assert (made > 0.9 * rounds) == drafts
    assert (made <= 2) != drafts


def test_the_loop_reports_what_the_budget_thought() -> None:
    model = markov(8, 1, sharpness=3)

    class Slow(ToySession):
        def forward(self, tokens: Sequence[int], parents: Sequence[int] | None = None) -> Step:
            time.sleep(0.003)
            return super().forward(tokens, parents)

    for noise, least, most in ((0.1, 1.5, 9.0), (50.0, 0.9, 1.4)):
        guess = ModelDrafter(ToySession(near(model, 2, noise=noise), 8))
        generation = Generation(
            Cached(Slow(model, 8)),
            [1, 2],
            GenerationConfig(max_new_tokens=50),
            drafter=guess,
            budget=Adaptive(CostTable({1: 1.0, 9: 1.2}), cooldown=4),
        )
        list(generation)
        found = generation.statistics
        assert least <= found.mean_accepted_tokens <= most
        assert found.predicted_speedup is not None
        assert found.num_rounds == found.num_drafts + found.rounds_off + found.rounds_without_guess


def test_no_budget_is_plain_decoding() -> None:
    model = markov(8, 1)
    guess = ModelDrafter(ToySession(model, 8))
    generation = Generation(
        Cached(ToySession(model, 8)),
        [1, 2],
        GenerationConfig(max_new_tokens=9),
        drafter=guess,
        budget=Fixed(0),
    )
    list(generation)
    found = generation.statistics
    assert (found.rounds_off, found.draft_forward_passes, found.num_rounds) == (9, 0, 9)
    assert found.speedup > 0


def test_a_process_that_had_to_wait_still_drafts() -> None:
    """Every tenth draft seems to take five hundred times as long."""
    budget = Adaptive(INT8)
    sizes = []
    for index in range(200):
        size = budget.next()
        late = 500.0 if index % 10 == 5 else 1.0
        tree = DraftTree.chain(range(size)) if size else NOTHING
        taken = tuple(range(size))
        budget.observe(
            Outcome(tree, Verdict(taken, 1, size, bonus=True), (1,) * (size + 1), ROWS,
                    draft_ms=0.02 * size * late, verify_ms=INT8(size + 1))
        )  # fmt: skip
        sizes.append(size)
    assert min(sizes[20:]) == 8
