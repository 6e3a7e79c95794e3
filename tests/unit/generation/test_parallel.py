"""Target and draft side by side: the same law, the same tokens, nothing unverified at the end."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Sequence
from typing import Any

import pytest
from enumeration import Replay, law
from test_generation_loop import CONFIGS, PROMPT, V, sequence_law, tokens
from toys import Model, ToySession, markov, near, whole

from sdk.errors import InputError
from sdk.runtimes.generation.budget import Fixed
from sdk.runtimes.generation.cached import Cached
from sdk.runtimes.generation.config import GenerationConfig
from sdk.runtimes.generation.contracts import DraftTree, Step
from sdk.runtimes.generation.loop import Generation
from sdk.runtimes.generation.model_drafter import ModelDrafter
from sdk.runtimes.generation.parallel import ParallelGeneration


def parallel(
    model: Model, draft: Model, config: GenerationConfig, *, vocabulary: int = 8, **parts: Any
) -> ParallelGeneration:
    sampling = parts.pop("sampling", "iid")
    prompt = parts.pop("prompt", [1, 2, 3])
    drafter = ModelDrafter(ToySession(draft, vocabulary), sampling=sampling)
    cached = Cached(ToySession(model, vocabulary))
    return ParallelGeneration(cached, prompt, config, drafter=drafter, **parts)


@pytest.mark.parametrize(
    ("config", "budget"), [("plain", 1), ("ends", 1), ("ends", 2), ("truncated", 2)]
)
def test_the_law_of_the_output_is_the_targets(config: str, budget: int) -> None:
    target, draft = markov(V, 1), markov(V, 2, sharpness=1.0)
    settings = CONFIGS[config]

    def output(chance: Replay) -> tuple[int, ...]:
        generation = parallel(
            target,
            draft,
            settings,
            vocabulary=V,
            prompt=PROMPT,
            budget=Fixed(budget),
            chance=chance,
        )
        return tuple(token.id for token in generation)

    want, got = sequence_law(target, settings), law(output)
    assert set(got) == set(want)
    assert max(abs(got[key] - want[key]) for key in want) < 1e-12


@pytest.mark.parametrize("budget", [0, 1, 3, 6])
@pytest.mark.parametrize("noise", [0.0, 0.4, 9.0])
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_tokens_are_those_of_plain_decoding(budget: int, noise: float, temperature: float) -> None:
    target = whole(8, 3)
    for seed in range(4):
        config = GenerationConfig(max_new_tokens=15, temperature=temperature, seed=seed, eos=(6,))
        generation = parallel(
            target,
            near(target, 1, noise=noise),
            config,
            sampling="deterministic",
            budget=Fixed(budget),
        )
        assert [token.id for token in generation] == tokens(target, config)


def test_a_right_draft_is_never_waited_for() -> None:
    """The first round verifies one guess, the others as many as are drafted at a time."""
    target = whole(8, 3)
    generation = parallel(target, target, GenerationConfig(max_new_tokens=25), budget=Fixed(4))
    found = [len([token]) for token in generation]
    assert sum(found) == 25
    assert generation.statistics.acceptance_rate == 1
    # one token in the first round, four in each other one, and no bonus token
    assert generation.statistics.num_rounds == 7


def test_runs_of_accepted_tokens_are_at_least_as_long_as_in_turn() -> None:
    target = markov(8, 5)
    draft = near(target, 1, noise=0.3)
    longest = {}
    for kind in (Generation, ParallelGeneration):
        runs: list[int] = []
        for seed in range(20):
            config = GenerationConfig(max_new_tokens=40, temperature=0.8, seed=seed)
            drafter = ModelDrafter(ToySession(draft, 8))
            cached = Cached(ToySession(target, 8))
            run = 0
            for token in kind(cached, [1], config, drafter=drafter, budget=Fixed(4)):
                run += token.from_draft
                if not token.from_draft:
                    runs.append(run)
                    run = 0
        longest[kind] = sum(runs) / len(runs)
    assert longest[ParallelGeneration] >= longest[Generation]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_caches_hold_the_context_after_each_round(temperature: float) -> None:
    target = whole(8, 4)
    config = GenerationConfig(max_new_tokens=20, temperature=temperature)
    generation = parallel(target, near(target, 2, noise=0.5), config, budget=Fixed(3))
    for _ in generation:
        cached = generation._cached
        context = [1, 2, 3, *generation.tokens]
        assert cached.tokens == context[:-1]
        assert cached.session.length == len(context) - 1


def test_the_drafts_state_follows_what_was_taken_back() -> None:
    """A stale one would only make drafts worse."""
    target = markov(8, 4)
    config = GenerationConfig(max_new_tokens=40, repetition_penalty=1.3, temperature=0.9)
    generation = parallel(target, near(target, 2, noise=0.5), config, budget=Fixed(3))
    drafter = generation._ahead
    propose, contexts = drafter.propose, list[list[int]]()

    def watched(context: Sequence[int], budget: int) -> DraftTree:
        found = propose(context, budget)
        contexts.append(list(context))
        assert drafter._state.history.tokens.tolist() == list(context)
        assert drafter.cached.tokens[: len(context)] == list(context)
        return found

    drafter.propose = watched  # type: ignore[method-assign]
    list(generation)
    assert any(len(after) <= len(before) for before, after in itertools.pairwise(contexts))


def test_both_run_at_the_same_time() -> None:
    """Each waits for the other to have begun; in turn, neither would come back."""
    target = whole(8, 3)
    meeting = threading.Barrier(2, timeout=5)

    class Meets(ToySession):
        def forward(self, tokens: Sequence[int], parents: Sequence[int] | None = None) -> Step:
            if self.forwards == 0:
                meeting.wait()
            return super().forward(tokens, parents)

    drafter = ModelDrafter(Meets(target, 8))
    generation = ParallelGeneration(
        Cached(Meets(target, 8)), [1, 2], GenerationConfig(max_new_tokens=5), drafter=drafter
    )
    assert len(list(generation)) == 5


def test_trees_are_refused() -> None:
    drafter = ModelDrafter(ToySession(markov(8, 1), 8), branching_factor=2)
    with pytest.raises(InputError, match="is for chains"):
        ParallelGeneration(
            Cached(ToySession(markov(8, 1), 8)), [1], GenerationConfig(), drafter=drafter
        )
