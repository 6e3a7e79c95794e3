"""The pipeline from logits to a distribution, each part against its definition."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from toys import ToySession, markov, near, whole

from sdk.errors import GenerationError, InputError
from sdk.runtimes.generation.budget import Fixed
from sdk.runtimes.generation.cached import Cached
from sdk.runtimes.generation.config import GenerationConfig
from sdk.runtimes.generation.contracts import Logits, Mask, Row
from sdk.runtimes.generation.history import History
from sdk.runtimes.generation.loop import Generation
from sdk.runtimes.generation.model_drafter import ModelDrafter
from sdk.runtimes.generation.momentum import RESISTANCE, Momentum, repeated
from sdk.runtimes.generation.transforms import Transforms
from sdk.runtimes.generation.uniforms import Uniforms, pick

V = 50
LOGITS = (2 * np.random.default_rng(0).normal(size=V)).astype(np.float32)


def apply(logits: Logits = LOGITS, prompt: Sequence[int] = (1,), **settings: Any) -> Row:
    transforms = Transforms(GenerationConfig(**{"temperature": 1.0, **settings}))
    return transforms.apply(transforms.start(prompt), logits)


def softmax(logits: Logits) -> Row:
    row: Row = np.exp(logits.astype(np.float64))
    return row / row.sum()


def test_temperature() -> None:
    assert np.allclose(apply(temperature=0.5), softmax(2 * LOGITS), rtol=1e-12)
    assert np.array_equal(apply(temperature=0.0), np.eye(V)[LOGITS.argmax()])
    assert np.allclose(apply(temperature=1e-4), np.eye(V)[LOGITS.argmax()])


@pytest.mark.parametrize("k", [1, 3, V, V + 5])
def test_top_k(k: int) -> None:
    row, kept = apply(top_k=k), np.argsort(-LOGITS)[:k]
    assert set(np.flatnonzero(row)) == set(kept)
    assert np.allclose(row[kept], softmax(LOGITS)[kept] / softmax(LOGITS)[kept].sum(), rtol=1e-12)


def test_top_k_keeps_equals() -> None:
    assert np.flatnonzero(apply(np.float32([1, 2, 2, 0]), top_k=1)).tolist() == [1, 2]


@pytest.mark.parametrize("top_p", [1e-9, 0.3, 0.9, 1.0])
@pytest.mark.parametrize("size", [V, 5000])
def test_top_p(top_p: float, size: int) -> None:
    """The fewest tokens that hold `top_p`; also where not all of them were sorted."""
    logits = (3 * np.random.default_rng(1).normal(size=size)).astype(np.float32)
    row, full = apply(logits, top_p=top_p), softmax(logits)
    kept = np.flatnonzero(row)
    assert full[kept].sum() >= top_p - 1e-12
    assert full[kept].sum() - full[kept].min() < top_p
    assert full[kept].min() >= np.delete(full, kept).max(initial=0)
    assert np.allclose(row[kept], full[kept] / full[kept].sum(), rtol=1e-12)


def test_a_flat_distribution_is_sorted_whole() -> None:
    assert np.count_nonzero(apply(np.zeros(5000, np.float32), top_p=0.8999)) == 4500


def test_min_p() -> None:
    row, full = apply(min_p=0.2), softmax(LOGITS)
    assert set(np.flatnonzero(row)) == set(np.flatnonzero(full >= 0.2 * full.max()))
    assert row.sum() == pytest.approx(1)


def test_repetition_penalty_divides_and_multiplies() -> None:
    logits = np.float32([2, -2, 1])
    want = softmax(np.float32([1, -4, 1]))
    assert np.allclose(apply(logits, [0, 1, 0], repetition_penalty=2.0), want, rtol=1e-12)


def test_presence_penalty_is_for_the_output_alone() -> None:
    transforms = Transforms(GenerationConfig(temperature=1.0, presence_penalty=0.5))
    state = transforms.start([0])
    logits = np.float32([2, 1, 1])
    assert np.allclose(transforms.apply(state, logits), softmax(logits))
    for token in (1, 1):
        state = transforms.advance(state, token)
    assert np.allclose(transforms.apply(state, logits), softmax(np.float32([2, 0.5, 1])))


def test_no_end_too_early() -> None:
    config = GenerationConfig(temperature=1.0, eos=(1, 2), min_new_tokens=2)
    transforms = Transforms(config)
    state = transforms.start([0])
    for count in range(3):
        row = transforms.apply(state, np.float32([0, 5, 5, 0]))
        assert (row[1] > 0) == (row[2] > 0) == (count == 2)
        state = transforms.advance(state, 3)


def test_the_logits_are_left_as_they_are() -> None:
    before = LOGITS.copy()
    apply(repetition_penalty=1.5, presence_penalty=1.0, top_k=4, top_p=0.5, min_p=0.1)
    assert np.array_equal(before, LOGITS)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize(
    "settings", [{}, {"temperature": 0.0}, {"top_k": 2}, {"eos": (1,), "min_new_tokens": 1}]
)
def test_logits_that_are_not_numbers(bad: float, settings: dict[str, Any]) -> None:
    with pytest.raises(GenerationError, match="are not numbers"):
        apply(np.float32([0, bad, 1]), **settings)


def test_nothing_left() -> None:
    with pytest.raises(GenerationError, match="No token may come next"):
        apply(np.zeros(2, np.float32), eos=(0, 1), min_new_tokens=1)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -1.0),
        ("temperature", math.nan),
        ("top_p", 0.0),
        ("top_k", -1),
        ("min_p", 1.5),
        ("repetition_penalty", 0.0),
        ("presence_penalty", math.inf),
        ("max_new_tokens", -1),
        ("min_new_tokens", 500),
    ],
)
def test_settings_out_of_range(name: str, value: float) -> None:
    with pytest.raises(InputError, match=name):
        GenerationConfig(**{name: value})  # type: ignore[arg-type]


def test_histories_are_values() -> None:
    """Random appends to random earlier histories, against plain lists."""
    rng = np.random.default_rng(2)
    known = [(History([7, 8]), [7, 8])]
    for _ in range(600):
        history, tokens = known[max(0, len(known) - 1 - int(rng.integers(4)))]
        token = int(rng.integers(3))
        known.append((history.append(token), [*tokens, token]))
    for history, tokens in known:
        assert history.tokens.tolist() == tokens
        assert history.output.tolist() == tokens[2:]


def test_numbers_by_place() -> None:
    uniforms = Uniforms(3)
    assert uniforms.at(5, 2) == Uniforms(3).at(5, 2) != Uniforms(4).at(5, 2)
    assert len({uniforms.at(p, lane) for p in range(30) for lane in (0, 1, 2, 1 << 40)}) == 120
    drawn = np.array([uniforms.at(position, position % 7) for position in range(20_000)])
    assert 0 <= drawn.min() < drawn.max() < 1
    counts = np.histogram(drawn, 20, (0, 1))[0]
    assert ((counts - 1000) ** 2 / 1000).sum() < 19 + 4.5 * math.sqrt(38)
    assert abs(np.corrcoef(drawn[1:], drawn[:-1])[0, 1]) < 0.03
    assert Uniforms(-1).at(0) != Uniforms(1).at(0)


def test_nothing_impossible_is_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even by a number that happens to be 0."""
    uniforms = Uniforms()
    monkeypatch.setattr(uniforms, "at", lambda position, lane: 0.0)
    assert not uniforms.accept(0.0, 5, 1)
    assert uniforms.accept(1e-300, 5, 1)


def test_a_draw_never_gives_a_token_of_weight_zero() -> None:
    row = np.array([0, 0.25, 0, 0.75, 0])
    assert [pick(row, u) for u in (0, 0.2499, 0.25, 1 - 2**-53)] == [1, 1, 3, 3]
    assert pick(np.array([0.1] * 10 + [0.0]), 1.0) == 9  # a product rounded up to the total


# Momentum decoding


@pytest.mark.parametrize(
    ("tokens", "token", "length"),
    [
        ([1, 2, 3], 4, 0),
        ([1, 2, 3], 1, 1),
        ([1, 2, 3, 1], 2, 2),
        ([1, 2, 3, 1, 2], 3, 3),
        ([5, 1, 2, 3, 6, 1, 2], 3, 3),
        ([1, 1, 1], 1, 3),
        ([1, 2, 3, 4, 5, 6, 7, 1, 2, 3, 4, 5, 6], 7, 6),
    ],
)
def test_the_length_of_what_would_be_repeated(tokens: list[int], token: int, length: int) -> None:
    assert repeated(np.array(tokens), token, limit=6) == length


def momentum_tokens(momentum: Momentum | None, count: int = 60) -> list[int]:
    model = markov(6, 1, sharpness=3)
    config = GenerationConfig(max_new_tokens=count)
    transforms = () if momentum is None else (momentum,)
    cached = Cached(ToySession(model, 6, capacity=128))
    return [token.id for token in Generation(cached, [1, 2], config, transforms=transforms)]


def test_without_weight_momentum_is_greedy() -> None:
    assert momentum_tokens(Momentum(alpha=0)) == momentum_tokens(None)


@pytest.mark.parametrize("width", [2, 5, 6, 10])
def test_no_six_tokens_are_ever_repeated(width: int) -> None:
    found = [1, 2, *momentum_tokens(Momentum(width=width))]
    grams = [tuple(found[i : i + 6]) for i in range(len(found) - 5)]
    assert len(grams) == len(set(grams))
    greedy = momentum_tokens(None)
    assert len({tuple(greedy[i : i + 6]) for i in range(55)}) < 20  # greedy runs in circles


def test_momentum_by_its_equations() -> None:
    """score(v) = p(v) - 0.2 f(l) among the five most probable; the graph as sets of n-grams."""
    rng = np.random.default_rng(0)
    for _ in range(50):
        tokens = rng.integers(0, 8, 40).tolist()
        logits = (2 * rng.normal(size=8)).astype(np.float32)
        row = softmax(logits)
        scores = {}
        for token in np.argsort(-row)[:5].tolist():
            ended = [*tokens, token]
            grams = [
                {tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)} for n in range(1, 7)
            ]
            length = sum(tuple(ended[-n:]) in grams[n - 1] for n in range(1, 7))
            scores[token] = row[token] - 0.2 * (*RESISTANCE, math.inf)[length]
        transforms = Transforms(GenerationConfig(), extra=[Momentum()])
        assert transforms.best(transforms.start(tokens), logits) == max(scores, key=scores.get)  # type: ignore[arg-type]


def test_momentum_does_not_sample() -> None:
    with pytest.raises(InputError, match="does not sample"):
        Transforms(GenerationConfig(temperature=1.0), extra=[Momentum()])


def test_momentum_with_a_drafter_gives_the_same_tokens() -> None:
    model = markov(6, 1, sharpness=3)
    config = GenerationConfig(max_new_tokens=40)
    plain = momentum_tokens(Momentum(), 40)
    for branching in (1, 2):
        guess = ModelDrafter(
            ToySession(near(model, 3, noise=0.5), 6, capacity=128), branching_factor=branching
        )
        generation = Generation(
            Cached(ToySession(model, 6, capacity=128)),
            [1, 2],
            config,
            transforms=[Momentum()],
            drafter=guess,
            budget=Fixed(5),
        )
        assert [token.id for token in generation] == plain
        assert generation.statistics.mean_accepted_tokens > 1.3


# Constraints


class Alternating:
    """Words over 0..7 in which even and odd tokens take turns; a 4 is followed by 5, 6; 7 ends."""

    def __init__(self) -> None:
        self.forced_calls = 0

    def start(self) -> tuple[int, ...]:
        return ()

    def advance(self, state: tuple[int, ...], token: int) -> tuple[int, ...]:
        assert self.allowed(state)[token], f"{token} after {state}"
        return (*state, token)

    def allowed(self, state: tuple[int, ...]) -> Mask:
        allowed = np.arange(8) % 2 == len(state) % 2
        if state and state[-1] == 4:
            return np.arange(8) == 5
        if len(state) > 1 and state[-2:] == (4, 5):
            return np.arange(8) == 6
        return allowed & (np.arange(8) != 7) | ((np.arange(8) == 7) & (len(state) > 9))

    def permits(self, state: tuple[int, ...], token: int) -> bool:
        return bool(self.allowed(state)[token])

    def forced(self, state: tuple[int, ...]) -> list[int]:
        self.forced_calls += 1
        return [5, 6] if state and state[-1] == 4 else []


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("sampling", ["deterministic", "iid", "without_replacement", "greedy"])
@pytest.mark.parametrize("branching", [1, 2])
def test_constrained_output(sampling: str, temperature: float, branching: int) -> None:
    model = whole(8, 1)
    for seed in range(5):
        config = GenerationConfig(max_new_tokens=20, temperature=temperature, eos=(7,), seed=seed)
        guess = ModelDrafter(
            ToySession(near(model, 3, noise=0.5), 8), sampling=sampling, branching_factor=branching
        )
        outputs = []
        for drafter in (None, guess):
            generation = Generation(
                Cached(ToySession(model, 8)),
                [1, 2],
                config,
                constraint=Alternating(),
                drafter=drafter,
            )
            outputs.append([token.id for token in generation])
            state: tuple[int, ...] = ()
            for token in outputs[-1]:
                state = Alternating().advance(state, token)
        if temperature == 0 or sampling == "deterministic":
            assert outputs[0] == outputs[1]


def test_forced_tokens_are_free_drafts() -> None:
    """Plain decoding takes them too: three tokens for one pass of the target."""
    model = whole(8, 1)

    def likes_four(context: tuple[int, ...]) -> Logits:
        return (model(context) + 9 * (np.arange(8) == 4)).astype(np.float32)

    config = GenerationConfig(max_new_tokens=15)
    session = ToySession(likes_four, 8)
    generation = Generation(Cached(session), [1], config, constraint=Alternating())
    list(generation)
    assert generation.tokens[:4] == [4, 5, 6, generation.tokens[3]]
    assert generation.statistics.acceptance_rate == 1
    assert session.forwards < 12


class Dead:
    """A language without words."""

    def start(self) -> None: ...

    def advance(self, state: None, token: int) -> None: ...

    def allowed(self, state: None) -> Mask:
        return np.zeros(8, np.bool_)

    def permits(self, state: None, token: int) -> bool:
        return False

    def forced(self, state: None) -> list[int]:
        return []


def test_a_constraint_that_leaves_nothing() -> None:
    generation = Generation(
        Cached(ToySession(whole(8, 1), 8)), [1], GenerationConfig(), constraint=Dead()
    )
    with pytest.raises(GenerationError, match="No token may come next"):
        list(generation)
