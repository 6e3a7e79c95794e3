"""Drafters without a model: what they guess, what they learn, and files that are damaged."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toys import Model, ToySession, markov, near, whole

from sdk.errors import ArtifactError, CorruptArtifactError, InputError
from sdk.runtimes.generation.budget import Fixed
from sdk.runtimes.generation.cached import Cached
from sdk.runtimes.generation.config import GenerationConfig
from sdk.runtimes.generation.contracts import (
    ROOT,
    Drafter,
    DraftTree,
    Outcome,
    Request,
    Verdict,
)
from sdk.runtimes.generation.datastore import Datastore, suffix_array
from sdk.runtimes.generation.drafters import NAMES, named
from sdk.runtimes.generation.drafters.fused import FusedDrafter
from sdk.runtimes.generation.drafters.prompt_lookup import PromptLookupDrafter
from sdk.runtimes.generation.drafters.retrieval import RetrievalDrafter
from sdk.runtimes.generation.drafters.source_lookup import SourceLookupDrafter
from sdk.runtimes.generation.drafters.trigram import SEARCHES, TrigramDrafter
from sdk.runtimes.generation.loop import Generation
from sdk.runtimes.generation.model_drafter import ModelDrafter
from sdk.runtimes.generation.statistics import Statistics
from sdk.runtimes.generation.transforms import Transforms
from sdk.runtimes.generation.tree_search import best_first, monte_carlo
from sdk.runtimes.generation.trigram_table import MOST, TOP, TrigramTable
from sdk.runtimes.generation.uniforms import Uniforms

V = 16
PROMPT = [1, 2, 3, 4, 5, 1, 2]


def request(prompt: Sequence[int] = PROMPT, vocabulary: int = V) -> Request:
    return Request(prompt, vocabulary, Transforms(GenerationConfig()), Uniforms())


def paths(tree: DraftTree) -> set[tuple[int, ...]]:
    """All nodes as paths from the root."""
    found: list[tuple[int, ...]] = []
    for token, parent in zip(tree.tokens, tree.parents, strict=True):
        found.append((*(found[parent] if parent != ROOT else ()), token))
    assert len(set(found)) == len(found), "a path is there twice"
    return set(found)


def text(model: Model, count: int, prompt: Sequence[int] = (1, 2), seed: int = 0) -> list[int]:
    config = GenerationConfig(max_new_tokens=count, temperature=0.7, seed=seed)
    cached = Cached(ToySession(model, V, capacity=count + 8))
    return [token.id for token in Generation(cached, prompt, config)]


def generate(
    model: Model, drafter: Drafter | None, *, seed: int = 0, temperature: float = 0.7
) -> tuple[list[int], Statistics]:
    config = GenerationConfig(max_new_tokens=30, temperature=temperature, seed=seed)
    generation = Generation(
        Cached(ToySession(model, V)), PROMPT, config, drafter=drafter, budget=Fixed(8)
    )
    return [token.id for token in generation], generation.statistics


# Prompt lookup


@pytest.mark.parametrize(
    ("context", "budget", "guess"),
    [
        ([1, 2, 3, 9, 1, 2], 2, (3, 9)),
        ([1, 2, 3, 1, 2, 4, 1, 2], 1, (4,)),  # the latest
        ([7, 1, 2, 3, 8, 2, 5, 1, 2], 1, (3,)),  # the longest before the latest
        ([5, 6, 5], 5, (6, 5, 6, 5, 6)),  # on with itself
        ([4, 4], 3, (4, 4, 4)),
        ([1, 2, 3], 5, ()),
        ([1], 5, ()),
    ],
)
def test_prompt_lookup(context: list[int], budget: int, guess: tuple[int, ...]) -> None:
    drafter = PromptLookupDrafter(max_ngram_size=3)
    drafter.begin(request())
    for end in range(1, len(context)):
        drafter.propose(context[:end], 4)  # as it grows
    assert drafter.propose(context, budget).tokens == guess
    fresh = PromptLookupDrafter(max_ngram_size=3)
    assert fresh.propose(context, budget).tokens == guess


def test_prompt_lookup_forgets_the_last_request() -> None:
    drafter = PromptLookupDrafter(num_draft_tokens=2)
    drafter.begin(request())
    assert drafter.propose([1, 2, 3, 4, 1], 9).tokens == (2, 3)
    drafter.begin(request())
    assert drafter.propose([9, 8, 7, 1], 9).tokens == ()


# Source lookup


def test_a_source_is_copied_from_its_beginning_and_behind_what_was_copied() -> None:
    source = [3, 4, 5, 6, 3, 4, 7, 8, 3, 4, 9]
    drafter = SourceLookupDrafter()
    drafter.begin(replace(request([1, 1]), source=source))
    assert drafter.propose([1, 1], 3).tokens == (3, 4, 5)
    assert drafter.propose([1, 1, 3, 4], 2).tokens == (5, 6)  # the first place of the pair
    assert drafter.propose([1, 1, 3, 4, 7], 2).tokens == (8, 3)
    assert drafter.propose([1, 1, 3, 4, 7, 8, 3, 4], 2).tokens == (
        9,
    )  # the next one, not the first
    assert drafter.propose([1, 1, 12], 2).tokens == ()
    assert drafter.propose([1, 1, 12, 5], 1).tokens == (6,)
    drafter.begin(request([3, 4]))  # another request, without a source: its prompt is none
    assert drafter.propose([3, 4, 3, 4], 3).tokens == ()
    own = SourceLookupDrafter(source, num_draft_tokens=2)
    own.begin(request([1]))
    assert own.propose([1], 9).tokens == (3, 4)


# Trigrams


def test_counting() -> None:
    table = TrigramTable.count([[1, 2, 3, 1, 2, 3, 1, 2, 4], [1, 2]], V)
    assert table.successors(1, 2) == pytest.approx({3: 2 / 3, 4: 1 / 3})
    assert table.successors(2, 1) == {}
    assert len(table) == 3


def test_a_row_keeps_its_best() -> None:
    corpus = [[1, 2, token] for token in range(14) for _ in range(token + 1)]
    found = TrigramTable.count(corpus, V).successors(1, 2)
    assert set(found) == set(range(14 - TOP, 14))


def test_learning_is_bounded() -> None:
    table = TrigramTable(V, max_learned=5)
    for _ in range(200):
        table.learn([1, 2, 3])
    assert table.successors(1, 2) == {3: MOST}
    for first in range(8):
        table.learn([first, 9, 9])
    assert len(table) == 5
    for token in range(V):
        table.learn([7, 9, token])
    assert table.successors(7, 9)[9] > 0.04
    wide = TrigramTable(1000)
    for token in range(100):
        wide.learn([1, 2, token])
    assert len(wide.successors(1, 2)) <= 2 * TOP


def test_tables_are_kept_between_runs(tmp_path: Path) -> None:
    table = TrigramTable.count([text(markov(V, 1), 300)], V)
    table.learn(text(markov(V, 2), 16))
    table.learn([14, 15, 14, 15])
    table.save(tmp_path / "table.npz")
    again = TrigramTable.load(tmp_path / "table.npz")
    assert len(again) == len(table)
    for first in range(V):
        for second in range(V):
            best = sorted(table.successors(first, second).values())[-TOP:]
            assert sorted(again.successors(first, second).values()) == pytest.approx(best)
    again.save(tmp_path / "again.npz")
    assert TrigramTable.load(tmp_path / "again.npz").successors(14, 15) == again.successors(14, 15)
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["again.npz", "table.npz"]


def test_damaged_tables_are_refused(tmp_path: Path) -> None:
    table = TrigramTable.count([text(markov(V, 1), 300)], V)
    table.save(tmp_path / "table.npz")
    whole_file = (tmp_path / "table.npz").read_bytes()
    broken = tmp_path / "broken.npz"
    rng = random.Random(0)
    refused = 0
    for _ in range(150):
        data = bytearray(whole_file)
        if rng.random() < 0.3:
            del data[rng.randrange(len(data)) :]
        else:
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        broken.write_bytes(data)
        try:
            TrigramTable.load(broken).successors(1, 2)
        except CorruptArtifactError:
            refused += 1
    assert refused > 100  # the rest hit what nobody reads, such as a date


@pytest.mark.parametrize("change", ["tokens", "scores", "starts", "keys", "pickled", "compressed"])
def test_tables_with_wrong_numbers_are_refused(tmp_path: Path, change: str) -> None:
    path = tmp_path / "table.npz"
    TrigramTable.count([text(markov(V, 1), 300)], V).save(path)
    with np.load(path) as file:
        arrays = dict(file)
    if change == "tokens":
        arrays["tokens"][0] = V
    elif change == "scores":
        arrays["scores"][0] = np.nan
    elif change == "pickled":
        arrays["scores"] = np.array([{}], object)
    elif change != "compressed":
        arrays[change][-1] -= 1 if change == "starts" else 10_000
    (np.savez_compressed if change == "compressed" else np.savez)(path, **arrays)  # type: ignore[arg-type]
    with pytest.raises(CorruptArtifactError, match=r"table\.npz cannot be used"):
        TrigramTable.load(path)


def test_a_table_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="is not there"):
        TrigramTable.load(tmp_path / "none.npz")


def test_best_first_takes_the_likeliest_paths() -> None:
    table = {(1, 2): {3: 0.6, 4: 0.4}, (2, 3): {5: 0.5, 6: 0.3}, (2, 4): {7: 1.0}, (4, 7): {8: 1.0}}
    tree = best_first(lambda *pair: table.get(pair, {}), (1, 2), budget=5, depth=3)
    assert paths(tree) == {(3,), (4,), (4, 7), (4, 7, 8), (3, 5)}
    assert best_first(lambda *pair: table.get(pair, {}), (1, 2), budget=9, depth=1).tokens == (3, 4)


def test_monte_carlo_finds_what_best_first_finds() -> None:
    corpus = text(markov(V, 1, sharpness=3), 500)
    table, pair = TrigramTable.count([corpus], V), (corpus[0], corpus[1])
    for budget in (3, 6):
        best = best_first(table.successors, pair, budget=budget, depth=4)
        found = monte_carlo(table.successors, pair, budget=budget, depth=4, random=random.Random(0))
        assert len(found) == len(best) == budget
        assert len(paths(found) & paths(best)) >= budget / 2


@pytest.mark.parametrize("search", SEARCHES)
def test_trigram_drafts_get_better_over_a_stream(search: str) -> None:
    """With an empty table at first; without learning they would stay where they are."""
    model = markov(V, 1, sharpness=4)
    drafter = TrigramDrafter(TrigramTable(V), search=search)
    taken = [generate(model, drafter, seed=seed)[1].mean_accepted_tokens for seed in range(16)]
    assert np.mean(taken[8:]) > np.mean(taken[:8]) + 0.2
    still = TrigramDrafter(TrigramTable(V), search=search, adapt=False)
    assert generate(model, still)[1].num_drafts == 0


def test_an_unknown_search() -> None:
    with pytest.raises(InputError, match="no such search"):
        TrigramDrafter(TrigramTable(V), search="beam")


# Retrieval


@pytest.mark.parametrize("size", [1, 2, 50, 400])
@pytest.mark.parametrize("letters", [1, 2, 9])
def test_suffix_array(size: int, letters: int) -> None:
    tokens = np.random.default_rng(size).integers(0, letters, size)
    want = sorted(range(size), key=lambda i: tokens[i : i + 32].tolist())
    got = suffix_array(tokens, 32).tolist()
    assert [tokens[i : i + 32].tolist() for i in got] == [tokens[i : i + 32].tolist() for i in want]
    assert sorted(got) == list(range(size))


def test_datastore_lookups(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 4, 500).tolist()
    store = Datastore.build([tokens[:200], tokens[200:]], V, tmp_path / "store")
    for _ in range(200):
        pattern = rng.integers(0, 4, rng.integers(1, 6)).tolist()
        want = [i for i in range(500) if tokens[i : i + len(pattern)] == pattern]
        ranks = store.find(pattern)
        assert len(ranks) == len(want)
        assert all(store.text(rank, len(pattern)) == pattern for rank in ranks)
        context = [9, *pattern]
        length, ranks = store.longest(context, least=1, most=16)
        ends = [n for n in range(1, 7) if store.find(context[-n:]) and n <= len(context)]
        assert length == max(ends, default=0)
        assert ranks == (store.find(context[-length:]) if length else range(0))


def test_retrieval_counts_what_follows(tmp_path: Path) -> None:
    corpus = [[5, 1, 2, 3, 4, 6], [5, 1, 2, 3, 7, 6], [5, 1, 2, 8, 9, 6], [9, 2, 11, 6]]
    drafter = RetrievalDrafter(Datastore.build(corpus, V, tmp_path / "store"))
    drafter.begin(request())
    tree = drafter.propose([7, 1, 2], 3)
    assert paths(tree) == {(3,), (8,), (3, 4)} or paths(tree) == {(3,), (8,), (3, 7)}
    assert tree.scores[0] > tree.scores[1]
    assert drafter.propose([13, 14], 3).tokens == ()


def test_damaged_datastores_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "store"
    Datastore.build([[1, 2, 3, 1, 2, 3, 4]], V, path)
    data = path.read_bytes()
    for broken in (b"", data[:20], data[:-1], data + b"\0", b"X" + data[1:], bytes(len(data))):
        path.write_bytes(broken)
        with pytest.raises(CorruptArtifactError, match="store cannot be used"):
            Datastore(path)
    for place in (24, len(data) - 28):  # tokens, suffixes
        path.write_bytes(data[:place] + b"\xff" * 28 + data[place + 28 :])
        drafter = RetrievalDrafter(Datastore(path), min_match=1)
        with pytest.raises(CorruptArtifactError, match="store cannot be used"):  # noqa: PT012
            drafter.propose([1, 2], 4)
            drafter.propose([0xFFFFFFFF], 4)
    with pytest.raises(ArtifactError, match="cannot be read"):
        Datastore(tmp_path / "none")


@pytest.mark.parametrize("texts", [[], [[]], [[V]], [[-1]]])
def test_texts_that_cannot_be_stored(tmp_path: Path, texts: list[list[int]]) -> None:
    with pytest.raises(InputError, match="cannot be stored"):
        Datastore.build(texts, V, tmp_path / "store")


# Fusion


class Says:
    """A drafter that always says the same."""

    sampling, chain, forward_passes = "deterministic", False, 0

    def __init__(self, tree: DraftTree) -> None:
        self.tree = tree
        self.outcomes: list[Outcome] = []

    def begin(self, request: Request) -> None: ...

    def propose(self, context: Sequence[int], budget: int) -> DraftTree:
        return self.tree

    def observe(self, outcome: Outcome) -> None:
        self.outcomes.append(outcome)


def test_fusion_is_a_trie_under_one_budget() -> None:
    first = DraftTree((1, 2, 3), (ROOT, 0, 0), scores=(0.9, 0.5, 0.1))
    second = DraftTree((1, 2, 4), (ROOT, 0, 1), scores=(0.6, 0.6, 0.6))
    fused = FusedDrafter(Says(first), Says(second))
    assert paths(fused.propose([0], 9)) == {(1,), (1, 2), (1, 3), (1, 2, 4)}
    assert paths(fused.propose([0], 3)) == {(1,), (1, 2), (1, 2, 4)}


def test_fusion_prunes_by_the_models_first_step() -> None:
    q = np.array([0.5, 0.4, 0.1, 0.0])
    first = DraftTree((0,), (ROOT,), probs=(q, None), scores=(0.5,))
    second = DraftTree((1, 2, 3, 1), (ROOT, ROOT, 1, 0), scores=(0.9, 0.9, 0.9, 0.9))
    fused = FusedDrafter(Says(first), Says(second), prune_top=2)
    assert paths(fused.propose([0], 9)) == {(0,), (1,), (1, 1)}


def test_pruned_branches_that_turn_out_right_come_back() -> None:
    q = np.array([0.5, 0.4, 0.1, 0.0])
    first = DraftTree((0,), (ROOT,), probs=(q, None), scores=(0.5,))
    second = DraftTree((2, 3), (ROOT, 0), scores=(0.9, 0.9))
    fused = FusedDrafter(Says(first), Says(second), prune_top=2)
    rows: Any = None
    for _ in range(4):
        assert paths(fused.propose([0], 9)) == {(0,)}
        fused.observe(Outcome(first, Verdict((), 1, 1, bonus=False), (1,), rows))
    for _ in range(4):
        fused.propose([0], 9)
        fused.observe(Outcome(first, Verdict((), 2, 1, bonus=False), (2,), rows))
    assert paths(fused.propose([0], 2)) == {(2,), (2, 3)}
    for _ in range(80):
        fused.propose([0], 9)
        fused.observe(Outcome(first, Verdict((0,), 1, 1, bonus=True), (0, 1), rows))
    assert paths(fused.propose([0], 9)) == {(0,)}


def test_fused_drafts_are_taken_at_least_as_often_as_their_parts() -> None:
    """On text that copies and on text that does not."""
    copies, plain = whole(V, 1, period=6), markov(V, 3, sharpness=2)
    for model in (copies, plain):
        taken = {}
        for name in ("lookup", "model", "fused"):
            lookup = PromptLookupDrafter()
            draft = ModelDrafter(
                ToySession(near(plain, 1, noise=0.5), V),
                sampling="deterministic",
                branching_factor=2,
            )
            drafter: Drafter = {
                "lookup": lookup,
                "model": draft,
                "fused": FusedDrafter(draft, lookup, prune_top=V),
            }[name]
            taken[name] = np.mean(
                [generate(model, drafter, seed=seed)[1].mean_accepted_tokens for seed in range(6)]
            )
        assert taken["fused"] >= max(taken["lookup"], taken["model"]) - 0.1


# All of them


def drafters(model: Model, folder: Path) -> dict[str, Drafter]:
    corpus = [text(model, 300, seed=seed) for seed in (100, 101)]
    table = TrigramTable.count(corpus, V)
    store = Datastore.build(corpus, V, folder / "store")
    draft = ModelDrafter(ToySession(near(model, 1, noise=0.5), V), branching_factor=2)
    return {
        "prompt_lookup": PromptLookupDrafter(),
        "trigram": TrigramDrafter(table),
        "trigram, mcts": TrigramDrafter(table, search="monte_carlo"),
        "retrieval": RetrievalDrafter(store),
        "fused": FusedDrafter(draft, RetrievalDrafter(store), PromptLookupDrafter()),
        "source_lookup": SourceLookupDrafter(corpus[0]),
    }


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_no_drafter_changes_a_token(tmp_path: Path, temperature: float) -> None:
    """And each is right often enough to be of use."""
    model = markov(V, 1, sharpness=3)
    guesses = drafters(model, tmp_path)
    taken: dict[str, list[float]] = {name: [] for name in guesses}
    for seed in range(12):
        plain, _ = generate(model, None, seed=seed, temperature=temperature)
        for name, drafter in guesses.items():
            found, statistics = generate(model, drafter, seed=seed, temperature=temperature)
            assert found == plain, name
            taken[name].append(statistics.mean_accepted_tokens)
    assert min(np.mean(values) for values in taken.values()) > 1.3


def test_registry() -> None:
    assert NAMES == (
        "fused",
        "lexical_unit",
        "prompt_lookup",
        "retrieval",
        "source_lookup",
        "trigram",
    )
    assert named("prompt_lookup") is PromptLookupDrafter
    with pytest.raises(InputError, match="no drafter 'medusa'"):
        named("medusa")


def test_drafts_of_another_vocabulary_are_refused(tmp_path: Path) -> None:
    for drafter in (
        TrigramDrafter(TrigramTable(V)),
        RetrievalDrafter(Datastore.build([[1]], V, tmp_path / "store")),
    ):
        with pytest.raises(InputError, match="another vocabulary"):
            drafter.begin(request(vocabulary=V + 1))
