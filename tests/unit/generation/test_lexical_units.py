"""Lexical units: placeholders as drafts change no token; unverified units only where asked for."""

from __future__ import annotations

import numpy as np
import pytest
from enumeration import Replay, law
from test_generation_loop import PROMPT as LAW_PROMPT, sequence_law
from toys import Model, ToySession, markov, whole

from sdk.errors import InputError
from sdk.runtimes.generation.budget import Fixed
from sdk.runtimes.generation.cached import Cached
from sdk.runtimes.generation.config import GenerationConfig
from sdk.runtimes.generation.contracts import Logits
from sdk.runtimes.generation.drafters.lexical_unit import LexicalUnitDrafter
from sdk.runtimes.generation.loop import Generation
from sdk.runtimes.generation.lossy_units import LossyLexicalUnitGeneration
from sdk.runtimes.generation.statistics import Statistics

V, PAD = 9, 8
PROMPT = [1, 2, 3]


def units(model: Model, *, right: float = 1.0) -> Model:
    """A model of tokens below `PAD` that at its j-th placeholder says the token j further on.

    Where it is not `right` it says another one, and is less sure.
    """

    def plain(context: tuple[int, ...]) -> Logits:
        row = model(context)[:V].copy()
        row[PAD] = -30
        return 4 * row

    def logits(context: tuple[int, ...]) -> Logits:
        text = list(context)
        places = 0
        while text[-1] == PAD:
            text.pop()
            places += 1
        for _ in range(places):
            text.append(int(plain(tuple(text)).argmax()))
        row = plain(tuple(text))
        if places and np.random.default_rng(text).random() > right:
            row = np.roll(row, 1)
            row[PAD] = -30
            row = row / 8
        return row

    return logits


def run(
    model: Model,
    drafter: LexicalUnitDrafter | None,
    *,
    budget: int = 8,
    temperature: float = 0.0,
    count: int = 30,
) -> tuple[list[int], Statistics]:
    config = GenerationConfig(max_new_tokens=count, temperature=temperature, seed=3)
    generation = Generation(
        Cached(ToySession(model, V, capacity=200)),
        PROMPT,
        config,
        drafter=drafter,
        budget=Fixed(budget),
    )
    return [token.id for token in generation], generation.statistics


def lossy(model: Model, confidence: float, **settings: object) -> LossyLexicalUnitGeneration:
    config = GenerationConfig(max_new_tokens=30, **settings)  # type: ignore[arg-type]
    drafter = LexicalUnitDrafter(PAD, confidence=confidence, lossless=False)
    cached = Cached(ToySession(model, V))
    return LossyLexicalUnitGeneration(cached, PROMPT, config, drafter=drafter)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("budget", [1, 2, 3, 8, 15])
@pytest.mark.parametrize("right", [0.0, 0.7, 1.0])
def test_placeholders_change_no_token(right: float, budget: int, temperature: float) -> None:
    model = units(whole(V, 2), right=right)
    plain, _ = run(model, None, temperature=temperature)
    found, _ = run(model, LexicalUnitDrafter(PAD), budget=budget, temperature=temperature)
    assert found == plain


@pytest.mark.parametrize(("budget", "tokens"), [(3, 2), (8, 3), (15, 4)])
def test_a_model_that_is_right_is_never_refused(budget: int, tokens: int) -> None:
    """Guesses that were stale, or off by one, would be."""
    found = run(units(whole(V, 2)), LexicalUnitDrafter(PAD), budget=budget, count=121)[1]
    whole_rounds = -(-120 // tokens)
    assert 1 + whole_rounds <= found.num_rounds <= 5 + whole_rounds  # the last have less room


def test_an_unsure_guess_ends_a_unit() -> None:
    model = units(whole(V, 2), right=0.6)
    wild = run(model, LexicalUnitDrafter(PAD), budget=15)[1]
    careful = run(model, LexicalUnitDrafter(PAD, confidence=0.5), budget=15)[1]
    assert careful.draft_tokens_proposed < wild.draft_tokens_proposed
    assert careful.num_rounds <= wild.num_rounds + 2


def test_units_that_nobody_verifies() -> None:
    right, wrong = units(whole(V, 2)), units(whole(V, 2), right=0.6)
    plain, _ = run(right, None)
    never = lossy(wrong, 1.0)
    assert [token.id for token in never] == plain
    all_right = lossy(right, 0.0)
    assert [token.id for token in all_right] == plain
    assert all_right.statistics.num_rounds == 8  # 4 tokens each
    agreement = []
    for confidence in (0.0, 0.5, 0.9, 1.0):
        found = [token.id for token in lossy(wrong, confidence)]
        same = next((i for i in range(30) if found[i] != plain[i]), 30)
        agreement.append(same)
    assert agreement == sorted(agreement)
    assert agreement[0] < 30 == agreement[-1]
    assert not never.verifier.lossless


def test_units_that_nobody_verifies_end_where_they_should() -> None:
    model = units(whole(V, 2))
    plain, _ = run(model, None)
    stop = plain[6]
    ended = lossy(model, 0.0, eos=(stop,))
    assert [token.id for token in ended] == plain[: plain.index(stop) + 1]
    assert ended.finish_reason == "eos"
    with pytest.raises(InputError, match="log-probabilities"):
        lossy(model, 0.0, logprobs=True)


def test_unusable_placeholders() -> None:
    with pytest.raises(InputError, match="no token of the target"):
        run(units(whole(V, 2)), LexicalUnitDrafter(V))
    with pytest.raises(InputError, match="no token of the target"):
        list(
            LossyLexicalUnitGeneration(
                Cached(ToySession(units(whole(V, 2)), V)),
                PROMPT,
                GenerationConfig(),
                drafter=LexicalUnitDrafter(V, lossless=False),
            )
        )
    with pytest.raises(InputError, match="span"):
        LexicalUnitDrafter(PAD, span=0)


@pytest.mark.parametrize("settings", [{}, {"eos": (1,), "min_new_tokens": 2}])
def test_the_law_of_the_output_is_the_targets(settings: dict[str, object]) -> None:
    """Placeholders too, where the model gives them a chance: they are tokens like any other."""
    target = markov(3, 1)
    config = GenerationConfig(max_new_tokens=3, temperature=1.0, **settings)  # type: ignore[arg-type]

    def output(chance: Replay) -> tuple[int, ...]:
        generation = Generation(
            Cached(ToySession(target, 3)),
            LAW_PROMPT,
            config,
            drafter=LexicalUnitDrafter(0),
            budget=Fixed(8),
            chance=chance,
        )
        return tuple(token.id for token in generation)

    want, got = sequence_law(target, config), law(output)
    assert set(got) == set(want)
    assert max(abs(got[key] - want[key]) for key in want) < 1e-12
