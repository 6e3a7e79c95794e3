"""What drafts learn: feature heads, sorted exits, lexical units, and drafts that learn online."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
import transformers
from language_models import model as trained_by_chance

from sdk.compilers.feature_head import FeatureHead, HeadSize, HeadStep
from sdk.compilers.segments import Segment
from sdk.errors import InputError
from sdk.recipes.drafts.feature_head import (
    HeadTraining,
    _dynamic,
    _example,
    target_features,
    train_head,
)
from sdk.recipes.drafts.lexical_unit import IGNORED, train_units, unit_batch, unit_lengths
from sdk.recipes.drafts.live import LiveSession
from sdk.recipes.drafts.online import DIVERGENCES, OnlineConfig, OnlineDrafter
from sdk.recipes.drafts.sorted import exit_losses, train_sorted
from sdk.runtimes.generation.budget import Fixed
from sdk.runtimes.generation.cached import Cached
from sdk.runtimes.generation.config import GenerationConfig
from sdk.runtimes.generation.contracts import Drafter
from sdk.runtimes.generation.drafters.lexical_unit import LexicalUnitDrafter
from sdk.runtimes.generation.feature_drafter import FeatureDrafter
from sdk.runtimes.generation.loop import Generation
from sdk.runtimes.generation.parallel import ParallelGeneration
from sdk.runtimes.generation.sessions import StepSession
from sdk.runtimes.generation.sorted_drafter import SortedDrafter, SortedSession
from sdk.runtimes.generation.statistics import Statistics

V = 64
PROMPT = [1, 2, 3, 4]
Model = transformers.PreTrainedModel


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(before)


def llama(layers: int = 2, width: int = 32, seed: int = 0) -> Model:
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        vocab_size=V, hidden_size=width, num_hidden_layers=layers, num_attention_heads=4,
        num_key_value_heads=2, intermediate_size=48, max_position_embeddings=160,
        eos_token_id=None, bos_token_id=None,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config).eval()


def generate(
    target: Cached,
    drafter: Drafter | None = None,
    *,
    budget: int = 4,
    temperature: float = 0.0,
    prompt: list[int] | None = None,
    count: int = 60,
) -> tuple[list[int], Statistics]:
    config = GenerationConfig(max_new_tokens=count, temperature=temperature, top_k=4, seed=1)
    generation = Generation(target, prompt or PROMPT, config, drafter=drafter, budget=Fixed(budget))
    return [token.id for token in generation], generation.statistics


def live(model: Model, *, features: bool = False) -> Cached:
    return Cached(StepSession(LiveSession.of(model, features=features)))


def head_session(head: FeatureHead) -> LiveSession:
    return LiveSession(HeadStep(head), _example(head), _dynamic(head.size.context))


def segments(model: Model, *exits: int) -> list[LiveSession]:
    found = []
    for first, last in zip((0, *exits[:-1]), exits, strict=True):
        from sdk.compilers.huggingface_generation import generative

        made = generative(model, None, layers=(first, last))
        assert isinstance(made.step, Segment)
        found.append(LiveSession(made.step, made.inputs, made.dynamic))
    return found


# Feature heads


@pytest.mark.parametrize("sampling", [True, False])
@pytest.mark.parametrize("partial", [True, False])
def test_a_head_learns_what_its_target_says(sampling: bool, partial: bool) -> None:
    """On one text, which it then guesses; stale pairs or features would not be taken."""
    target = llama()
    cached = live(target, features=True)
    plain, _ = generate(cached)
    text = torch.tensor([[*PROMPT, *plain]])
    settings = HeadTraining(learning_rate=3e-3, noise=0.0, sampling=sampling, partial=partial)
    head, losses = train_head(target, [text] * 120, settings)
    assert losses[-1][0] < losses[0][0] / 4
    assert losses[-1][1] < losses[0][1]
    session = head_session(head)
    for branching, budget, least in ((1, 4, 2.5), (2, 8, 2.5)):
        drafter = FeatureDrafter(session, branching_factor=branching)
        for _ in range(2):
            found, statistics = generate(cached, drafter, budget=budget)
            assert found == plain
            assert statistics.mean_accepted_tokens > least


def test_a_heads_step_is_the_head() -> None:
    """Fed token by token behind its cache, it gives what it gives for a text as a whole."""
    target = llama()
    head = FeatureHead(target, HeadSize.of(target)).eval()
    tokens = torch.randint(0, V, (1, 20))
    features = target_features(target, tokens)
    positions = torch.arange(19)[None]
    with torch.no_grad():
        predicting, regressing = head(tokens[:, 1:], features[:, :-1], positions)
        want = head.output(predicting)[0].numpy()
    session = StepSession(head_session(head))
    given = features[0, :-1].numpy()
    session.extend(tokens[0, 1:11].tolist(), features=given[:10])
    for index in range(10, 19):
        step = session.forward([int(tokens[0, index + 1])], features=given[index : index + 1])
        np.testing.assert_allclose(step.logits[0], want[index], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(step.features[0], regressing[0, index], rtol=1e-4, atol=1e-5)
        session.commit([0])


def test_kept_features_are_those_of_the_context() -> None:
    target = llama()
    cached = live(target, features=True)
    plain, _ = generate(cached, count=20)
    context = [*PROMPT, *plain]
    want = target_features(target, torch.tensor([context[:-1]]))[0]
    session = cached.session
    assert isinstance(session, StepSession)
    np.testing.assert_allclose(session.features(0, len(context) - 1), want, rtol=1e-4, atol=1e-5)
    other = [*PROMPT[:2], 9, 9, 9]
    generate(cached, prompt=other, count=1)  # rolled back, and grown again
    want = target_features(target, torch.tensor([other]))[0]
    np.testing.assert_allclose(session.features(0, 5), want[:5], rtol=1e-4, atol=1e-5)


def test_heads_and_targets_that_do_not_fit() -> None:
    target = llama()
    head = head_session(FeatureHead(target, HeadSize.of(target)))
    with pytest.raises(InputError, match="does not give the features"):
        generate(live(target), FeatureDrafter(head))
    with pytest.raises(InputError, match="does not give the features"):
        generate(live(llama(width=64), features=True), FeatureDrafter(head))
    with pytest.raises(InputError, match="no feature head"):
        FeatureDrafter(LiveSession.of(target))
    with pytest.raises(InputError, match="waits for the target"):
        ParallelGeneration(
            live(target, features=True), PROMPT, GenerationConfig(), drafter=FeatureDrafter(head)
        )


# Sorted exits


def test_sorted_training_lowers_the_loss_at_every_exit() -> None:
    draft = llama(layers=3)
    text = torch.randint(0, V, (2, 24))
    history = train_sorted(draft, [text] * 40, [1, 2, 3], learning_rate=1e-2)
    assert all(last < first - 1 for first, last in zip(history[0], history[-1], strict=True))
    with torch.no_grad():
        logits = draft(input_ids=text[:, :-1]).logits
        want = torch.nn.functional.cross_entropy(logits.flatten(0, 1), text[:, 1:].flatten())
    assert exit_losses(draft, text, [3])[0].item() == pytest.approx(want.item(), rel=1e-5)
    for wrong in ([], [0, 1], [2, 1], [1, 4], [1, 1]):
        with pytest.raises(InputError, match="do not fit"):
            exit_losses(draft, text, wrong)


def test_replayed_tokens_are_as_if_they_had_gone_all_the_way() -> None:
    """Early exits, rollbacks and trees in any order: a deep pass is that of the whole model."""
    draft = llama(layers=3)
    whole = StepSession(LiveSession.of(draft))
    exits = SortedSession([StepSession(s) for s in segments(draft, 1, 2, 3)], [1.0, 1.0])
    rng = np.random.default_rng(0)
    lengths = set()
    for _ in range(60):
        exits._limits = [float(rng.random() < 0.6), float(rng.random() < 0.6)]
        if exits.length > 8 and rng.random() < 0.3:
            length = int(rng.integers(exits.length - 8, exits.length))
            exits.rollback(length)
            whole.rollback(length)
        tokens = rng.integers(0, V, 3).tolist()
        parents = [-1, 0, 0] if rng.random() < 0.5 else None
        got = np.array(exits.forward(tokens, parents).logits)
        want = np.array(whole.forward(tokens, parents).logits)
        if exits._fed == 3:
            np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)
        kept = [0, 2] if parents else [0, 1]
        if exits.length < 100:
            exits.commit(kept)
            whole.commit(kept)
        lengths.add(tuple(segment.length for segment in exits._segments))
    assert any(first > second > third for first, second, third in lengths)
    assert all(exits.used)


def test_one_draft_serves_two_targets() -> None:
    draft = llama(layers=3, seed=3)
    drafter = SortedDrafter(segments(draft, 1, 2, 3), thresholds=[0.02, 0.03])
    for seed in (0, 1):
        target = live(llama(seed=seed))
        plain, _ = generate(target, count=20)
        found, _ = generate(target, drafter, count=20)
        assert found == plain
    own = live(draft)
    _, statistics = generate(own, SortedDrafter(segments(draft, 1, 2, 3), thresholds=[1, 1]))
    assert statistics.mean_accepted_tokens > 4.5
    assert sum(drafter.exits.used) > 0


def test_thresholds_choose_the_exit() -> None:
    draft = llama(layers=3)
    target = live(draft)
    for limits, used in (([0.0, 0.0], 0), ([1.0, 1.0], 2), ([1.0, 0.0], 1)):
        drafter = SortedDrafter(segments(draft, 1, 2, 3), thresholds=limits)
        generate(target, drafter, count=20)
        assert [bool(count) for count in drafter.exits.used] == [i == used for i in range(3)]


def test_segments_that_do_not_fit() -> None:
    draft = llama(layers=3)
    first, second, third = segments(draft, 1, 2, 3)
    for wrong in ([second, third], [first, first]):
        with pytest.raises(InputError, match="do not follow each other"):
            SortedDrafter(wrong)
    with pytest.raises(InputError, match="no segments"):
        SortedDrafter([])
    with pytest.raises(InputError, match="thresholds"):
        SortedDrafter([first, second, third], thresholds=[0.5])
    for layers in ((0, 0), (2, 1), (-1, 2), (0, 4)):
        with pytest.raises(InputError, match="no such layers"):
            Segment(draft, layers)
    with pytest.raises(InputError, match="cannot be compiled"):
        Segment(trained_by_chance("gpt2"), (0, 1))


# Lexical units


def test_units_by_hand() -> None:
    class Says(torch.nn.Module):
        """Sure of the tokens 2, 3 and 5 where they follow."""

        def forward(self, input_ids: torch.Tensor) -> object:
            logits = torch.zeros(*input_ids.shape, V)
            for t in range(input_ids.shape[1] - 1):
                if int(input_ids[0, t + 1]) in (2, 3, 5):
                    logits[0, t, input_ids[0, t + 1]] = 20
            return transformers.modeling_outputs.CausalLMOutput(logits=logits)

    tokens = torch.tensor([[0, 1, 2, 3, 4, 5, 5, 5, 5, 7]])
    # behind 0: 1 2 3; behind 1: 2 3; behind 2: 3; behind 3: 4 5 5 5 5, cut to 4; ...
    lengths = unit_lengths(Says(), tokens, longest=4)  # type: ignore[arg-type]
    assert lengths.tolist() == [[3, 2, 1, 4, 4, 3, 2, 1, 1, 0]]
    given, labels = unit_batch(tokens, lengths, torch.tensor([3]), placeholder=9, span=3)
    assert given.tolist() == [[0, 1, 2, 3, 9, 9, 9, 9, 9, 9, 9, 9, 9]]
    assert labels[0, :3].tolist() == [IGNORED] * 3
    assert labels[0, 3:8].tolist() == [4, 5, 5, 5, IGNORED]


def test_a_model_learns_to_say_its_units_at_once() -> None:
    """And drafts with them: more tokens a pass, none of them another."""
    target = llama()
    pattern = [(7 * i * i + 3) % 50 for i in range(12)]
    text = torch.tensor([(pattern * 4)[i : i + 36] for i in range(12)])
    for _ in range(2):
        history = train_units(target, [text] * 60, placeholder=V - 1, learning_rate=5e-3)
    assert history[-1][1] < history[0][1]
    cached = live(target)
    plain, _ = generate(cached, prompt=pattern[:6])
    found, statistics = generate(cached, LexicalUnitDrafter(V - 1), budget=15, prompt=pattern[:6])
    assert found == plain
    assert statistics.mean_accepted_tokens > 2


# Online


def test_a_draft_learns_from_verification() -> None:
    """Another model's output, request by request; the same requests without learning stay hard."""
    target = live(llama(seed=5))
    settings = OnlineConfig(interval=1, learning_rate=5e-3)
    prompts = [[i, i + 1, i + 2] for i in range(3)]
    plain = [generate(target, prompt=prompt, count=16)[0] for prompt in prompts]
    taken = {}
    for learning in (True, False):
        drafter = OnlineDrafter(llama(layers=1, seed=6), settings)
        drafter.learning = learning
        rounds = []
        for _ in range(10 if learning else 1):
            for prompt, want in zip(prompts, plain, strict=True):
                found, statistics = generate(target, drafter, prompt=prompt, count=16)
                assert found == want
                rounds.append(statistics.acceptance_rate)
        taken[learning] = float(np.mean(rounds[-3:]))
        assert bool(drafter.losses) is learning
    assert taken[True] > taken[False] + 0.3


def test_lessons_are_where_the_target_corrected() -> None:
    target = llama(seed=5)
    drafter = OnlineDrafter(llama(layers=1, seed=6), OnlineConfig(interval=99))
    plain, statistics = generate(live(target), drafter, count=30)
    lesson = drafter._current
    assert lesson.tokens == [*PROMPT, *plain]
    assert len(lesson.wrong) == statistics.correction_tokens > 5
    with torch.no_grad():
        rows = target(input_ids=torch.tensor([lesson.tokens])).logits[0].softmax(-1)
    for place, p in lesson.wrong:
        np.testing.assert_allclose(p, rows[place], rtol=1e-3, atol=1e-5)
        assert lesson.tokens[place + 1] == int(p.argmax())


@pytest.mark.parametrize("name", DIVERGENCES)
def test_divergences(name: str) -> None:
    """Least where both agree, and there flat."""
    p = torch.randn(3, 9).softmax(-1)
    logits = torch.randn(3, 9, requires_grad=True)
    other = DIVERGENCES[name](p, logits.log_softmax(-1))
    same = DIVERGENCES[name](p, p.log())
    assert bool((same < other).all())
    leaf = p.log().clone().requires_grad_()
    DIVERGENCES[name](p, leaf.log_softmax(-1)).sum().backward()  # type: ignore[no-untyped-call]
    assert leaf.grad is not None
    assert leaf.grad.abs().max() < 1e-5


@pytest.mark.parametrize("wrong", [{"interval": 0}, {"divergence": "none"}, {"longest": 1}])
def test_learning_out_of_range(wrong: dict[str, object]) -> None:
    with pytest.raises(InputError, match="out of range"):
        OnlineConfig(**wrong)  # type: ignore[arg-type]
