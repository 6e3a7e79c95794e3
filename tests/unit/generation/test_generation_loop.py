"""The loop on toy models: laws, seeds, the cache, the ends of an output, bad input."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from enumeration import Replay, law
from toys import Model, ToySession, markov, near, whole

from sdk.runtimes.generation.budget import Fixed
from sdk.runtimes.generation.cached import Cached
from sdk.runtimes.generation.config import GenerationConfig
from sdk.runtimes.generation.contracts import DraftTree, Outcome, Row, Verifier
from sdk.runtimes.generation.loop import Generation
from sdk.runtimes.generation.model_drafter import ModelDrafter
from sdk.runtimes.generation.transforms import Transforms
from sdk.runtimes.generation.uniforms import Uniforms
from sdk.runtimes.generation.verifiers import named

V = 3
PROMPT = [0, 2]
DRAFTS: dict[str, tuple[str, str, int, int]] = {
    # name: verifier, sampling, branching, budget
    "chain": ("speculative_sampling", "iid", 1, 2),
    "chain, matched": ("sample_match", "deterministic", 1, 2),
    "tree, matched": ("sample_match", "deterministic", 2, 4),
    "tree, rrs": ("rrs", "iid", 2, 3),
    "tree, k_seq": ("k_seq", "iid", 2, 3),
    "tree, without replacement": ("rrs_without_replacement", "without_replacement", 2, 4),
    "tree, greedy": ("greedy_draft", "greedy", 2, 4),
    "tree, transport": ("optimal_transport", "iid", 2, 2),
}


def drafter(model: Model, name: str, *, vocabulary: int = V, capacity: int = 64) -> ModelDrafter:
    _, sampling, branching, _ = DRAFTS[name]
    session = ToySession(model, vocabulary, capacity=capacity)
    return ModelDrafter(session, sampling=sampling, branching_factor=branching, tree_depth=3)


def verifier(name: str) -> Verifier:
    if name == "tree, transport":
        pytest.importorskip("scipy")
    return named(DRAFTS[name][0])


def run(
    session: ToySession, prompt: Sequence[int], config: GenerationConfig, **parts: object
) -> Generation:
    generation = Generation(Cached(session), prompt, config, **parts)  # type: ignore[arg-type]
    ids = [token.id for token in generation]
    assert ids == generation.tokens
    return generation


def tokens(model: Model, config: GenerationConfig, **parts: object) -> list[int]:
    return run(ToySession(model, 8), [1, 2, 3], config, **parts).tokens


def sequence_law(model: Model, config: GenerationConfig) -> dict[tuple[int, ...], float]:
    """By the chain rule, with no code of the loop."""
    transforms = Transforms(config)
    found: dict[tuple[int, ...], float] = {}

    def extend(output: tuple[int, ...], probability: float) -> None:
        if len(output) == config.max_new_tokens or (output and output[-1] in config.eos):
            found[output] = probability
            return
        state = transforms.start(PROMPT)
        for token in output:
            state = transforms.advance(state, token)
        row = transforms.apply(state, model((*PROMPT, *output)))
        for token in range(V):
            if row[token] > 0:
                extend((*output, token), probability * float(row[token]))

    extend((), 1.0)
    return found


CONFIGS = {
    "plain": GenerationConfig(max_new_tokens=3, temperature=1.0),
    "ends": GenerationConfig(max_new_tokens=3, temperature=1.0, eos=(1,), min_new_tokens=2),
    "truncated": GenerationConfig(
        max_new_tokens=3, temperature=0.8, top_p=0.9, repetition_penalty=1.3, presence_penalty=0.2
    ),
}


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("name", DRAFTS)
def test_the_law_of_the_output_is_the_targets(name: str, config: str) -> None:
    """Over all drafts, acceptances, corrections and bonus tokens of all rounds."""
    target, draft = markov(V, 1), markov(V, 2, sharpness=1.0)
    settings = CONFIGS[config]

    def output(chance: Replay) -> tuple[int, ...]:
        generation = run(
            ToySession(target, V),
            PROMPT,
            settings,
            drafter=drafter(draft, name),
            verifier=verifier(name),
            budget=Fixed(DRAFTS[name][3]),
            chance=chance,
        )
        return tuple(generation.tokens)

    want, got = sequence_law(target, settings), law(output)
    assert set(got) == set(want)
    assert max(abs(got[key] - want[key]) for key in want) < 1e-12


@pytest.mark.parametrize("name", DRAFTS)
def test_seeds_give_the_law_too(name: str) -> None:
    target, draft = markov(V, 1, sharpness=0.7), markov(V, 2, sharpness=3.0)
    cached, guess = Cached(ToySession(target, V)), drafter(draft, name)
    counts: dict[tuple[int, ...], int] = {}
    runs = 200 if name == "tree, transport" else 1000
    settings = GenerationConfig(max_new_tokens=2, temperature=1.0)
    for seed in range(runs):
        generation = Generation(
            cached,
            PROMPT,
            replace(settings, seed=seed),
            drafter=guess,
            verifier=verifier(name),
            budget=Fixed(DRAFTS[name][3]),
        )
        found = tuple(token.id for token in generation)
        counts[found] = counts.get(found, 0) + 1
    want = sequence_law(target, settings)
    chi2 = sum((counts.get(key, 0) - runs * p) ** 2 / (runs * p) for key, p in want.items())
    assert chi2 < 31.8  # p = 1e-4 at 8 degrees of freedom


class Places:
    """A chance that notes which places were looked at since the last look."""

    def __init__(self, seed: int) -> None:
        self.uniforms, self.seen = Uniforms(seed), list[tuple[int, int]]()

    def accept(self, probability: float, position: int, lane: int) -> bool:
        self.seen.append((position, lane))
        return self.uniforms.accept(probability, position, lane)

    def draw(self, row: Row, position: int, lane: int = 0) -> int:
        self.seen.append((position, lane))
        return self.uniforms.draw(row, position, lane)


@pytest.mark.parametrize("name", DRAFTS)
def test_no_number_is_used_twice_in_a_round(name: str) -> None:
    """Drafts, tests and draws that shared one would depend on each other."""
    target = markov(8, 1)
    guess = drafter(near(target, 2, noise=0.7), name, vocabulary=8)
    chance, before = Places(0), 0
    generation = Generation(
        Cached(ToySession(target, 8)),
        PROMPT,
        GenerationConfig(max_new_tokens=20, temperature=1.0, top_k=3),
        drafter=guess,
        verifier=verifier(name),
        budget=Fixed(5),
        chance=chance,
    )
    for _ in generation:
        if len(generation.tokens) > before:
            assert len(chance.seen) == len(set(chance.seen)) > 0
            chance.seen, before = [], len(generation.tokens)


@pytest.mark.parametrize("name", ["chain, matched", "tree, matched"])
@pytest.mark.parametrize("noise", [0.0, 0.5, 5.0])
def test_the_same_seed_gives_the_same_tokens(name: str, noise: float) -> None:
    target = markov(8, 5)
    for seed in range(30):
        config = GenerationConfig(max_new_tokens=12, temperature=0.9, seed=seed)
        guess = drafter(near(target, 1, noise=noise), name, vocabulary=8)
        assert tokens(target, config) == tokens(target, config, drafter=guess, budget=Fixed(4))


@pytest.mark.parametrize("name", DRAFTS)
@pytest.mark.parametrize("budget", [1, 2, 5, 9])
def test_greedy_tokens_are_those_of_plain_decoding(name: str, budget: int) -> None:
    target = whole(8, 3)
    config = GenerationConfig(max_new_tokens=15)
    plain = tokens(target, config)
    for noise in (0.0, 0.3, 9.0):
        guess = drafter(near(target, 1, noise=noise), name, vocabulary=8)
        assert tokens(target, config, drafter=guess, budget=Fixed(budget)) == plain


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_a_drafter_that_is_the_target_is_always_right(temperature: float) -> None:
    """A stale draft cache would leave the output as it is, and be refused."""
    target = whole(8, 3)
    config = GenerationConfig(max_new_tokens=20, temperature=temperature)
    guess = drafter(target, "chain", vocabulary=8)
    found = run(ToySession(target, 8), [1, 2], config, drafter=guess, budget=Fixed(4)).statistics
    assert (found.acceptance_rate, found.mean_accepted_tokens) == (1.0, 5.0)
    assert (found.num_rounds, found.draft_tokens_proposed) == (4, 16)
    assert found.acceptance_rate_per_position == [1.0] * 4
    # after a full acceptance two tokens are fed at once, so drafting four takes four passes
    assert found.draft_forward_passes == 16


@pytest.mark.parametrize("name", DRAFTS)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_caches_hold_the_context_after_each_round(name: str, temperature: float) -> None:
    target = whole(8, 4)
    session = ToySession(target, 8)
    cached = Cached(session)
    guess = drafter(near(target, 2, noise=0.5), name, vocabulary=8)
    config = GenerationConfig(max_new_tokens=14, temperature=temperature)
    generation = Generation(
        cached, [1, 2], config, drafter=guess, verifier=_for(name, temperature), budget=Fixed(4)
    )
    before = 2
    for _ in generation:
        context = [1, 2, *generation.tokens]
        assert session.length == len(context) - 1
        assert cached.tokens == context[:-1]
        draft = guess.cached
        assert draft.session.length == len(draft.tokens)
        if before < len(context) < 16:  # the first token of a round: its draft began at `before`
            assert draft.tokens[:before] == context[:before]
            before = len(context)
    fresh = ToySession(target, 8).forward([1, 2, *generation.tokens]).logits[-1]
    reused = session.forward(generation.tokens[-1:]).logits[0]
    assert np.array_equal(fresh, reused)


class EveryThird:
    """A budget that drafts in every third round."""

    predicted_speedup = None

    def __init__(self) -> None:
        self.rounds = 0

    def begin(self) -> None: ...

    def next(self) -> int:
        self.rounds += 1
        return 4 if self.rounds % 3 == 1 else 0

    def trim(self, tree: DraftTree) -> DraftTree:
        return tree

    def observe(self, outcome: Outcome) -> None: ...


@pytest.mark.parametrize("name", DRAFTS)
def test_the_drafts_cache_is_the_context_after_rounds_without_a_draft(name: str) -> None:
    """What the target refused lies before the context's end by then."""
    target = whole(8, 4)
    guess = drafter(near(target, 2, noise=0.7), name, vocabulary=8)
    propose, refused = guess.propose, list[bool]()

    def watched(context: Sequence[int], budget: int) -> DraftTree:
        before = guess.cached.tokens[: len(context) - 1]
        refused.append(before != list(context[: len(before)]))
        tree = propose(context, budget)
        assert guess.cached.tokens[: len(context)] == list(context)
        return tree

    guess.propose = watched  # type: ignore[method-assign]
    config = GenerationConfig(max_new_tokens=40, temperature=1.0)
    cached = Cached(ToySession(target, 8))
    list(
        Generation(
            cached, [1, 2], config, drafter=guess, verifier=verifier(name), budget=EveryThird()
        )
    )
    assert len(refused) > 5
    assert any(refused) or not guess.chain


def _for(name: str, temperature: float) -> Verifier | None:
    return None if temperature == 0 else verifier(name)


def test_statistics_reconcile() -> None:
    target = markov(8, 3)
    config = GenerationConfig(max_new_tokens=40, temperature=1.0)
    guess = drafter(near(target, 1, noise=0.7), "tree, without replacement", vocabulary=8)
    found = run(ToySession(target, 8), [1], config, drafter=guess, budget=Fixed(5)).statistics
    assert 0 < found.draft_tokens_accepted <= found.draft_tokens_evaluated
    assert found.draft_tokens_evaluated <= found.draft_tokens_proposed
    assert found.bonus_tokens + found.correction_tokens == found.num_drafts
    assert found.draft_tokens_accepted + found.num_rounds >= found.new_tokens == 40
    assert sum(found.accepted_per_position) == found.draft_tokens_accepted
    assert found.accepted_per_position == sorted(found.accepted_per_position, reverse=True)
    assert found.total_ms >= found.prefill_ms + found.draft_ms + found.verify_ms
    assert 0 < found.ttft_ms < found.total_ms
    assert set(found.to_dict()) >= {"mean_accepted_tokens", "draft_forward_passes", "tpot_ms"}


def test_plain_decoding_is_one_token_a_pass() -> None:
    session = ToySession(markov(8, 3), 8)
    found = run(session, [1, 2], GenerationConfig(max_new_tokens=9)).statistics
    assert (found.mean_accepted_tokens, found.num_drafts, session.forwards) == (1.0, 0, 9)


def test_log_probabilities_are_the_models() -> None:
    target = markov(8, 3)
    config = GenerationConfig(max_new_tokens=6, temperature=0.5, logprobs=True)
    generation = Generation(
        Cached(ToySession(target, 8)),
        [1, 2],
        config,
        drafter=drafter(target, "chain", vocabulary=8),
    )
    context = [1, 2]
    for token in generation:
        row = np.exp(target(tuple(context)).astype(np.float64))
        assert token.logprob == pytest.approx(np.log(row[token.id] / row.sum()))
        context.append(token.id)


def test_tokens_say_where_they_come_from() -> None:
    target = markov(8, 3)
    config = GenerationConfig(max_new_tokens=10)
    guess = drafter(target, "chain", vocabulary=8)
    generation = Generation(
        Cached(ToySession(target, 8)), [1, 2], config, drafter=guess, budget=Fixed(4)
    )
    assert [token.from_draft for token in generation] == [True, True, True, True, False] * 2
