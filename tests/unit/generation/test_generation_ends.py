"""How a generation ends: by tokens, lengths, the context, the user, or an error."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import pytest
from test_generation_loop import DRAFTS, drafter, run, tokens
from toys import ToySession, markov, whole

from sdk.errors import GenerationError, InputError
from sdk.runtimes.generation.budget import Fixed
from sdk.runtimes.generation.cached import Cached
from sdk.runtimes.generation.config import GenerationConfig
from sdk.runtimes.generation.contracts import DraftTree, Logits
from sdk.runtimes.generation.loop import Generation


def test_each_way_out() -> None:
    target = markov(8, 9)
    plain = tokens(target, GenerationConfig(max_new_tokens=12))
    stop = next(token for token in plain[4:] if plain.index(token) >= 4)
    at = plain.index(stop) + 1
    for kind in ("eos", "stop_tokens"):
        for name, budget in itertools.product(DRAFTS, (1, 3, 6)):
            config = GenerationConfig(max_new_tokens=12, **{kind: (stop,)})  # type: ignore[arg-type]
            guess = drafter(target, name, vocabulary=8)
            generation = run(
                ToySession(target, 8), [1, 2, 3], config, drafter=guess, budget=Fixed(budget)
            )
            assert generation.tokens == plain[:at]
            assert generation.finish_reason == kind.removesuffix("_tokens")


@pytest.mark.parametrize("budget", [0, 1, 4, 30])
@pytest.mark.parametrize("count", [0, 1, 2, 7])
def test_exactly_as_many_tokens_as_asked_for(count: int, budget: int) -> None:
    target = markov(8, 9)
    guess = drafter(target, "chain", vocabulary=8)
    config = GenerationConfig(max_new_tokens=count)
    generation = run(ToySession(target, 8), [1, 2, 3], config, drafter=guess, budget=Fixed(budget))
    assert (len(generation.tokens), generation.finish_reason) == (count, "length")


def test_no_end_before_the_least_length() -> None:
    target = markov(8, 9)
    plain = tokens(target, GenerationConfig(max_new_tokens=12))
    config = GenerationConfig(max_new_tokens=12, eos=(plain[0],), min_new_tokens=5)
    guess = drafter(target, "chain", vocabulary=8)
    found = tokens(target, config, drafter=guess)
    assert plain[0] not in found[:5]
    assert found == tokens(target, config)


@pytest.mark.parametrize("name", DRAFTS)
@pytest.mark.parametrize("capacity", [9, 10, 11])
def test_the_context_is_used_to_its_last_token(name: str, capacity: int) -> None:
    target = markov(8, 9)
    config = GenerationConfig(max_new_tokens=50)
    guess = drafter(target, name, vocabulary=8, capacity=capacity - 1)
    session = ToySession(target, 8, capacity=capacity)
    generation = run(session, [1, 2, 3], config, drafter=guess, budget=Fixed(4))
    assert generation.finish_reason == "length"
    assert len(generation.tokens) == capacity - 3 + 1


def test_cancelling_leaves_a_usable_cache() -> None:
    target = whole(8, 3)
    cached = Cached(ToySession(target, 8))
    guess = drafter(target, "chain", vocabulary=8)
    config = GenerationConfig(max_new_tokens=12)
    seen: list[int] = []
    generation = Generation(
        cached, [1, 2, 3], config, drafter=guess, cancelled=lambda: len(seen) >= 5
    )
    for token in generation:
        seen.append(token.id)
    assert generation.finish_reason == "cancelled"
    assert seen == tokens(target, config)[: len(seen)]
    again = Generation(cached, [1, 2, 3, *seen], GenerationConfig(max_new_tokens=12 - len(seen)))
    assert [*seen, *(token.id for token in again)] == tokens(target, config)
    assert again.statistics.cached_tokens == 3 + len(seen) - 1


def test_leaving_the_loop_early_cancels() -> None:
    target = whole(8, 3)
    cached = Cached(ToySession(target, 8))
    generation = Generation(cached, [1, 2, 3], GenerationConfig(max_new_tokens=12))
    stream = iter(generation)
    first = next(stream)
    with pytest.raises(GenerationError, match="share one cache"):
        next(iter(Generation(cached, [1], GenerationConfig())))
    stream.close()  # type: ignore[attr-defined]
    assert (generation.finish_reason, generation.tokens) == ("cancelled", [first.id])
    again = [
        token.id for token in Generation(cached, [1, 2, 3], GenerationConfig(max_new_tokens=3))
    ]
    assert again == tokens(target, GenerationConfig(max_new_tokens=3))


@pytest.mark.parametrize(
    ("prompt", "message"),
    [([], "is empty"), ([1] * 65, "longer than the model's context"), ([8], "does not know")],
)
def test_unusable_prompts_are_refused(prompt: list[int], message: str) -> None:
    cached = Cached(ToySession(markov(8, 1), 8))
    list(Generation(cached, [1, 2], GenerationConfig(max_new_tokens=3)))
    with pytest.raises(InputError, match=message):
        list(Generation(cached, prompt, GenerationConfig()))
    assert cached.session.length == len(cached.tokens) == 4


def test_a_draft_of_another_vocabulary_is_refused() -> None:
    guess = drafter(markov(5, 1), "chain", vocabulary=5)
    with pytest.raises(InputError, match="another vocabulary"):
        run(ToySession(markov(8, 1), 8), [1], GenerationConfig(), drafter=guess)


def test_a_generation_runs_once() -> None:
    generation = run(ToySession(markov(8, 1), 8), [1], GenerationConfig(max_new_tokens=2))
    with pytest.raises(InputError, match="runs once"):
        list(generation)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_not_numbers(temperature: float) -> None:
    good = markov(8, 1)

    def breaks(context: tuple[int, ...]) -> Logits:
        logits = good(context).copy()
        logits[3] = np.nan if len(context) == 5 else logits[3]
        return logits

    cached = Cached(ToySession(breaks, 8))
    config = GenerationConfig(max_new_tokens=9, temperature=temperature)
    generation = Generation(cached, [1, 2], config)
    with pytest.raises(GenerationError, match="are not numbers"):
        list(generation)
    assert cached.session.length == len(cached.tokens) == 2 + len(generation.tokens) - 1
    list(Generation(cached, [2], GenerationConfig(max_new_tokens=2)))


class Broken:
    """A drafter that guesses what is not in the vocabulary."""

    sampling, chain, forward_passes = "deterministic", True, 0

    def begin(self, request: object) -> None: ...

    def propose(self, context: Sequence[int], budget: int) -> object:

        return DraftTree.chain([99])

    def observe(self, outcome: object) -> None: ...


def test_a_broken_drafter_is_named() -> None:
    with pytest.raises(GenerationError, match="Broken made an unusable draft"):
        run(ToySession(markov(8, 1), 8), [1], GenerationConfig(), drafter=Broken())
