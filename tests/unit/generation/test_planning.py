"""Planning over a reward: the search by hand, its caches, and drafters that change nothing."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
import pytest
from toys import Model, ToySession, near, whole

from sdk.errors import InputError
from sdk.runtimes.generation.budget import Fixed
from sdk.runtimes.generation.cached import Cached
from sdk.runtimes.generation.config import GenerationConfig
from sdk.runtimes.generation.contracts import Logits
from sdk.runtimes.generation.drafters.prompt_lookup import PromptLookupDrafter
from sdk.runtimes.generation.loop import Generation
from sdk.runtimes.generation.model_drafter import ModelDrafter
from sdk.runtimes.generation.planning import Node, Output, Plan, Planner, PlanningConfig
from sdk.runtimes.generation.transforms import softmax

V, END = 6, 5
PROMPT = [1, 2, 3]
CONFIG = GenerationConfig(max_new_tokens=7, eos=(END,))


def wants(word: Sequence[int]) -> object:
    """How much of `word` an output begins with."""

    def reward(output: Output) -> float:
        same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(output, word, strict=False))
        return len(list(same)) / len(word)

    return reward


def plan(
    model: Model, reward: object, config: GenerationConfig = CONFIG, **options: object
) -> Plan:
    parts = {name: options.pop(name) for name in ("drafter", "budget") if name in options}
    session = ToySession(model, V)
    settings = PlanningConfig(**options)  # type: ignore[arg-type]
    return Planner(Cached(session), PROMPT, config, reward, settings, **parts).run()  # type: ignore[arg-type]


def greedy(model: Model, begun: Sequence[int] = ()) -> tuple[int, ...]:
    cached = Cached(ToySession(model, V))
    generation = Generation(cached, PROMPT, CONFIG, begun=begun)
    for _ in generation:
        pass
    return tuple(generation.tokens)


def test_p_ucb_by_hand() -> None:
    node = Node((), ((4, 0.6), (2, 0.3), (0, 0.1)))
    settings = PlanningConfig(exploration=4, base=10)
    assert node.choose(settings) == 4  # ln 1 = 0: all are equal, and it is the most probable
    node.visits, node.tried, node.value = 3, {4: 2}, {4: 0.4}
    beta = math.log((3 + 10 + 1) / 10) + 4
    spread = math.sqrt(math.log(3))
    scores = {
        4: 0.4 + beta * 0.6 * spread / 3,
        2: beta * 0.3 * spread,
        0: beta * 0.1 * spread,
    }
    assert node.choose(settings) == max(scores, key=scores.__getitem__) == 2


def test_the_first_rollouts_by_hand() -> None:
    model = whole(V, 3)
    best = greedy(model)
    row = softmax(model(tuple(PROMPT)).astype(np.float64))
    first = np.argsort(-row)[:3].tolist()
    found = plan(model, lambda output: 0.0, rollouts=2, width=3)
    assert first[0] == best[0]
    # the first rollout goes down the most probable token, whose completion is the root's own
    outputs = [output for output, _ in found.outputs]
    assert outputs[0] == best
    assert found.completions <= 2


def test_what_the_model_would_not_say_first_is_found() -> None:
    model = whole(V, 3)
    row = softmax(model(tuple(PROMPT)).astype(np.float64))
    second = int(np.argsort(-row)[1])
    other = greedy(model, [second])
    word = other[:3]
    assert greedy(model)[:1] != word[:1]
    found = plan(model, wants(word), rollouts=60)
    assert found.outputs[0][1] == 1.0
    assert found.outputs[0][0][:3] == word
    assert list(found.best) == sorted(found.best)
    assert found.rollouts < 60  # it had enough
    rewards = [reward for _, reward in found.outputs]
    assert rewards == sorted(rewards, reverse=True)


def test_caches_change_nothing_but_the_work() -> None:
    model = whole(V, 3)
    reward = wants([9])
    kept = plan(model, reward, rollouts=40)
    anew = plan(model, reward, rollouts=40, cache=False)
    assert (kept.outputs, kept.best) == (anew.outputs, anew.best)
    assert kept.forward_passes < 0.7 * anew.forward_passes
    assert kept.completions < 0.7 * anew.completions


@pytest.mark.parametrize("kind", ["lookup", "model"])
def test_drafters_change_nothing_but_the_work(kind: str) -> None:
    model = whole(V, 3)
    drafter = (
        PromptLookupDrafter()
        if kind == "lookup"
        else ModelDrafter(ToySession(near(model, 1, noise=0.2), V))
    )
    config = GenerationConfig(max_new_tokens=7, eos=(END,), presence_penalty=0.5, min_new_tokens=3)
    plain = plan(model, wants([9]), config, rollouts=30)
    drafted = plan(model, wants([9]), config, rollouts=30, drafter=drafter, budget=Fixed(4))
    assert (drafted.outputs, drafted.completions) == (plain.outputs, plain.completions)
    if kind == "model":
        assert drafted.forward_passes < 0.6 * plain.forward_passes


def test_no_node_lies_behind_an_end() -> None:
    def ends(context: tuple[int, ...]) -> Logits:
        row = np.zeros(V, np.float32)
        row[END] = 2 * len(context) - 8
        return row

    found = plan(ends, lambda output: 0.0, rollouts=50)
    assert all(END not in output[:-1] for output, _ in found.outputs)
    assert all(len(output) <= 7 for output, _ in found.outputs)


def test_what_is_begun_counts_as_output() -> None:
    """Penalties, lengths and ends see it so; the cache and the drafts are as without."""
    model = whole(V, 3)
    config = GenerationConfig(max_new_tokens=9, presence_penalty=1.0, min_new_tokens=4, eos=(END,))
    once = Generation(Cached(ToySession(model, V)), PROMPT, config)
    tokens = [token.id for token in once]
    for split in range(len(tokens)):
        draft = ModelDrafter(ToySession(model, V))
        again = Generation(
            Cached(ToySession(model, V)),
            PROMPT,
            config,
            begun=tokens[:split],
            drafter=draft,
            budget=Fixed(3),
        )
        assert [token.id for token in again] == tokens[split:]
        assert again.tokens == tokens
        assert again.statistics.acceptance_rate in (0.0, 1.0)


@pytest.mark.parametrize("wrong", [{"width": 0}, {"rollouts": 0}, {"base": 0.0}])
def test_searches_out_of_range(wrong: dict[str, float]) -> None:
    with pytest.raises(InputError, match="out of range"):
        PlanningConfig(**wrong)  # type: ignore[arg-type]


def test_plans_are_greedy() -> None:
    with pytest.raises(InputError, match="greedily"):
        plan(whole(V, 3), wants([1]), GenerationConfig(temperature=1.0))
