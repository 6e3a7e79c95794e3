"""The test ladder for drafts from hidden states and from early exits, with every verifier."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
from enumeration import Replay, law
from feature_toys import Contexts, Giving, Taking
from test_generation_loop import CONFIGS, DRAFTS, PROMPT, V, sequence_law, verifier
from toys import Model, ToySession, markov, near, whole

from sdk.errors import InputError
from sdk.runtimes.generation.budget import Fixed
from sdk.runtimes.generation.cached import Cached
from sdk.runtimes.generation.config import GenerationConfig
from sdk.runtimes.generation.contracts import DraftTree
from sdk.runtimes.generation.feature_drafter import FeatureDrafter
from sdk.runtimes.generation.loop import Generation
from sdk.runtimes.generation.model_drafter import ModelDrafter
from sdk.runtimes.generation.sorted_drafter import SortedDrafter
from sdk.runtimes.generation.statistics import Statistics

KINDS = ("feature", "sorted")
Make = Callable[[], tuple[Cached, ModelDrafter]]


def pair(
    kind: str, name: str, target: Model, draft: Model, *, vocabulary: int = V, capacity: int = 64
) -> tuple[Cached, ModelDrafter]:
    """A target, and a drafter of the kind that says what `draft` does.

    The sorted one says it at its second exit; at its first, where it is sure, something near it.
    """
    _, sampling, branching, _ = DRAFTS[name]
    options = {"sampling": sampling, "branching_factor": branching, "tree_depth": 3}
    contexts = Contexts()
    drafter: ModelDrafter
    if kind == "feature":
        cached = Cached(Giving(target, vocabulary, contexts, capacity=capacity))
        head = Taking(draft, vocabulary, contexts, joined=True, capacity=capacity)
        drafter = FeatureDrafter(head, **options)  # type: ignore[arg-type]
    else:
        cached = Cached(ToySession(target, vocabulary, capacity=capacity))
        first = Giving(near(draft, 9, noise=0.2), vocabulary, contexts, capacity=capacity)
        second = Taking(draft, vocabulary, contexts, joined=False, capacity=capacity)
        drafter = SortedDrafter([first, second], thresholds=[0.5], **options)  # type: ignore[arg-type]
    return cached, drafter


def run(
    cached: Cached,
    drafter: ModelDrafter | None,
    config: GenerationConfig,
    *,
    budget: int = 4,
    prompt: Sequence[int] = PROMPT,
    **parts: object,
) -> tuple[list[int], Statistics]:
    generation = Generation(
        cached, prompt, config, drafter=drafter, budget=Fixed(budget), **parts  # type: ignore[arg-type]
    )  # fmt: skip
    return [token.id for token in generation], generation.statistics


def plain(target: Model, config: GenerationConfig, vocabulary: int = 8) -> list[int]:
    return run(Cached(ToySession(target, vocabulary)), None, config)[0]


@pytest.mark.parametrize("name", DRAFTS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_law_of_the_output_is_the_targets(kind: str, name: str) -> None:
    target, draft = markov(V, 1), markov(V, 2, sharpness=1.0)
    settings = CONFIGS["ends"]

    def output(chance: Replay) -> tuple[int, ...]:
        cached, drafter = pair(kind, name, target, draft)
        budget = DRAFTS[name][3]
        rule = verifier(name)
        return tuple(run(cached, drafter, settings, budget=budget, verifier=rule, chance=chance)[0])

    want, got = sequence_law(target, settings), law(output)
    assert set(got) == set(want)
    assert max(abs(got[key] - want[key]) for key in want) < 1e-12


@pytest.mark.parametrize("name", DRAFTS)
@pytest.mark.parametrize("kind", KINDS)
def test_seeds_give_the_law_too(kind: str, name: str) -> None:
    target, draft = markov(V, 1, sharpness=0.7), markov(V, 2, sharpness=3.0)
    cached, drafter = pair(kind, name, target, draft)
    counts: dict[tuple[int, ...], int] = {}
    runs = 100 if name == "tree, transport" else 400
    settings = [GenerationConfig(max_new_tokens=2, temperature=1.0, seed=i) for i in range(runs)]
    for config in settings:
        rule, budget = verifier(name), DRAFTS[name][3]
        found = tuple(run(cached, drafter, config, budget=budget, verifier=rule)[0])
        counts[found] = counts.get(found, 0) + 1
    want = sequence_law(target, settings[0])
    chi2 = sum((counts.get(key, 0) - runs * p) ** 2 / (runs * p) for key, p in want.items())
    assert chi2 < 31.8  # p = 1e-4 at 8 degrees of freedom


@pytest.mark.parametrize("name", ["chain, matched", "tree, matched"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_same_seed_gives_the_same_tokens(kind: str, name: str) -> None:
    target = markov(8, 5)
    for noise in (0.0, 0.5, 5.0):
        for seed in range(20):
            config = GenerationConfig(max_new_tokens=12, temperature=0.9, seed=seed)
            cached, drafter = pair(kind, name, target, near(target, 1, noise=noise), vocabulary=8)
            assert run(cached, drafter, config)[0] == plain(target, config)


@pytest.mark.parametrize("name", DRAFTS)
@pytest.mark.parametrize("kind", KINDS)
def test_greedy_tokens_are_those_of_plain_decoding(kind: str, name: str) -> None:
    target = whole(8, 3)
    config = GenerationConfig(max_new_tokens=15)
    for noise in (0.0, 0.3, 9.0):
        for budget in (1, 2, 5, 9):
            draft = near(target, 1, noise=noise)
            cached, drafter = pair(kind, name, target, draft, vocabulary=8)
            assert run(cached, drafter, config, budget=budget)[0] == plain(target, config)


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_a_head_that_is_the_target_is_always_right(temperature: float) -> None:
    """Also behind rejections of the request before, another prompt, and rounds without a draft."""
    target = whole(8, 3)
    cached, drafter = pair("feature", "chain", target, target, vocabulary=8)
    config = GenerationConfig(max_new_tokens=20, temperature=temperature)
    for prompt in ([1, 2], [1, 2, 3], [4, 2, 3], [1, 2]):
        found = run(cached, drafter, config, prompt=prompt)[1]
        assert (found.acceptance_rate, found.num_rounds) == (1.0, 4)


def test_deep_exits_are_always_right_and_early_ones_often() -> None:
    target = whole(8, 3)
    config = GenerationConfig(max_new_tokens=40)
    taken = {}
    for limit in (0.0, 0.5, 1.0):
        cached, drafter = pair("sorted", "chain", target, target, vocabulary=8)
        assert isinstance(drafter, SortedDrafter)
        drafter.exits._limits = [limit]
        taken[limit] = run(cached, drafter, config)[1].acceptance_rate
        deep = drafter.exits.used[1] / sum(drafter.exits.used)
        assert (deep == 0) == (limit == 0)
        assert (deep == 1) == (limit == 1)
    assert taken[1.0] == 1.0
    assert 0.3 < taken[0.0] <= taken[0.5] + 0.05 <= 1.05


@pytest.mark.parametrize("name", DRAFTS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_drafts_cache_is_the_context_at_each_draft(
    kind: str, name: str, temperature: float
) -> None:
    """The toys see to the features; a round in three has no draft."""
    target = whole(8, 4)
    cached, drafter = pair(kind, name, target, near(target, 2, noise=0.7), vocabulary=8)
    propose, seen = drafter.propose, list[int]()
    first = 1 if kind == "feature" else 0

    def watched(context: Sequence[int], budget: int) -> DraftTree:
        tree = propose(context, budget)
        kept = len(context) - first
        assert drafter.cached.tokens[:kept] == list(context[first:])
        assert drafter.cached.session.length == len(drafter.cached.tokens)
        if kind == "feature":  # of what is no guess the target's own features were fed
            assert not (drafter.cached.session._cache[:kept, 0] % 1).any()  # type: ignore[attr-defined]
        seen.append(len(tree))
        return tree

    drafter.propose = watched  # type: ignore[method-assign]
    config = GenerationConfig(max_new_tokens=30, temperature=temperature)
    rule = None if temperature == 0 else verifier(name)
    found, statistics = run(cached, drafter, config, verifier=rule)
    assert len(found) == 30
    assert len(seen) > 5
    assert statistics.mean_accepted_tokens > 1.2
    assert cached.session.length == len(cached.tokens) == len(PROMPT) + 29


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("capacity", [9, 10, 11])
def test_the_context_is_used_to_its_last_token(kind: str, capacity: int) -> None:
    target = markov(8, 9)
    cached, drafter = pair(kind, "chain", target, target, vocabulary=8, capacity=capacity)
    found, _ = run(cached, drafter, GenerationConfig(max_new_tokens=50))
    assert len(found) == capacity - len(PROMPT) + 1


def test_a_prompt_of_one_token_has_no_pair_yet() -> None:
    target = whole(8, 3)
    cached, drafter = pair("feature", "chain", target, target, vocabulary=8)
    found, statistics = run(cached, drafter, GenerationConfig(max_new_tokens=11), prompt=[3])
    assert len(found) == 11
    assert (statistics.rounds_without_guess, statistics.acceptance_rate) == (1, 1.0)


def test_a_target_without_features() -> None:
    _, drafter = pair("feature", "chain", markov(8, 1), markov(8, 1), vocabulary=8)
    with pytest.raises(InputError, match="does not give the features"):
        run(Cached(ToySession(markov(8, 1), 8)), drafter, GenerationConfig())
    assert np.all(drafter.forward_passes == 0)
