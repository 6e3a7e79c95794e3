"""Every drafter on every engine and precision: greedy tokens are plain ones, but for exact ties.

A draft changes how many tokens the target reads at once, and an engine may add their numbers in
another order. So a difference is allowed where, and only where, the two best logits are as good as
equal at the first token that differs; none is expected in fp32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from language_models import model as untrained, tokenizer, write_folder

import sdk
from sdk.errors import InputError
from sdk.model import Model
from sdk.recipes.drafts.feature_head import HeadTraining, compile_head, train_head
from sdk.runtimes.generation.contracts import Drafter
from sdk.runtimes.generation.datastore import Datastore
from sdk.runtimes.generation.drafters.fused import FusedDrafter
from sdk.runtimes.generation.drafters.lexical_unit import LexicalUnitDrafter
from sdk.runtimes.generation.drafters.prompt_lookup import PromptLookupDrafter
from sdk.runtimes.generation.drafters.retrieval import RetrievalDrafter
from sdk.runtimes.generation.drafters.source_lookup import SourceLookupDrafter
from sdk.runtimes.generation.drafters.trigram import TrigramDrafter
from sdk.runtimes.generation.feature_drafter import FeatureDrafter
from sdk.runtimes.generation.in_place import InPlaceSession, decoder
from sdk.runtimes.generation.model_drafter import ModelDrafter
from sdk.runtimes.generation.sorted_drafter import SortedDrafter
from sdk.runtimes.generation.trigram_table import TrigramTable

ENGINES = ("onnxruntime", "openvino")
PROMPT = "The fox jumps, the dog sleeps. The fox"
TOKENS, V = 60, 298
TIE = 1e-3
"""Of the logits' spread."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder("llama", tmp_path_factory.mktemp("ladder") / "folder")


@pytest.fixture(scope="module", params=ENGINES)
def engine(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def made(folder: Path, engine: str) -> dict[str, sdk.Artifact]:
    """The target with its features, its two segments, and a head that knows its text."""
    root = folder.parent / engine
    root.mkdir()
    parts: dict[str, dict[str, Any]] = {
        "target": {"features": True}, "first": {"layers": (0, 1)}, "second": {"layers": (1, 2)},
    }  # fmt: skip
    found = {
        name: sdk.compile(folder, task="text-generation", target=engine,
                          output=root / f"{name}.edge", threads=1, **options)
        for name, options in parts.items()
    }  # fmt: skip
    prompt = tokenizer().encode(PROMPT).ids
    with sdk.load(found["target"], threads=1) as target:
        text = [*prompt, *target.generate(prompt, max_new_tokens=TOKENS, eos=()).tokens]
    torch.manual_seed(0)
    settings = HeadTraining(learning_rate=3e-3, noise=0.0)
    head, _ = train_head(untrained("llama"), [torch.tensor([text])] * 100, settings)
    output = root / "head.edge"
    return found | {"head": compile_head(head, target=engine, output=output, threads=1)}


@pytest.fixture
def opened(made: dict[str, sdk.Artifact]) -> Iterator[Callable[[str], Model]]:
    models: list[Model] = []

    def get(name: str) -> Model:
        models.append(sdk.load(made[name], threads=1))
        return models[-1]

    yield get
    for model in models:
        model.close()


def drafters(get: Callable[[str], Model], plain: list[int], folder: Path) -> dict[str, Drafter]:
    """Each, with the least number of tokens that a round is to bring."""
    texts = [tokenizer().encode(PROMPT).ids + plain]
    store = Datastore.build(texts, V, folder / "store")
    session = get("target").language.cached.session

    def model() -> ModelDrafter:
        return ModelDrafter(session.fork(), branching_factor=2, tree_depth=3)

    return {
        "model": model(),
        "feature": FeatureDrafter(get("head").session),
        "feature tree": FeatureDrafter(get("head").session, branching_factor=2),
        "sorted": SortedDrafter([get(n).session for n in ("first", "second")], thresholds=[1.0]),
        "prompt_lookup": PromptLookupDrafter(),
        "trigram": TrigramDrafter(TrigramTable.count(texts, V)),
        "retrieval": RetrievalDrafter(store),
        "fused": FusedDrafter(model(), RetrievalDrafter(store), PromptLookupDrafter()),
        "source_lookup": SourceLookupDrafter(plain),
        "lexical_unit": LexicalUnitDrafter(7),
    }


LEAST = {"model": 2.5, "feature": 1.5, "feature tree": 1.5, "sorted": 4, "trigram": 1.5,
         "retrieval": 2, "fused": 2, "source_lookup": 5, "lexical_unit": 1}  # fmt: skip


def same_but_for_ties(model: Model, prompt: list[int], want: Any, got: Any) -> bool:
    """Whether `got` is `want` up to a place where the model cannot tell two tokens apart."""
    differ = next((i for i, (a, b) in enumerate(zip(want, got, strict=True)) if a != b), None)
    if differ is None:
        return True
    session = decoder(model.session)
    session.extend([*prompt, *want[:differ]][:-1])
    logits = np.sort(np.array(session.forward([[*prompt, *want[:differ]][-1]]).logits[0]))
    return bool(logits[-1] - logits[-2] < TIE * logits.std())


def test_greedy_tokens_whatever_drafts(
    opened: Callable[[str], Model], tmp_path: Path, engine: str
) -> None:
    target, prompt = opened("target"), tokenizer().encode(PROMPT).ids
    in_place = isinstance(target.language.cached.session, InPlaceSession)
    assert in_place == (engine == "onnxruntime"), "a step with features has the fastest form too"
    plain = list(target.generate(prompt, max_new_tokens=TOKENS, eos=()).tokens)
    for name, drafter in drafters(opened, plain, tmp_path).items():
        for _ in range(2):  # the second time behind what the first left in the caches
            found = target.generate(
                prompt, max_new_tokens=TOKENS, eos=(), drafter=drafter, num_draft_tokens=6
            )
            assert list(found.tokens) == plain, f"{name} on {engine}"
        assert found.stats.mean_accepted_tokens >= LEAST.get(name, 0), name


def test_sampled_tokens_whatever_drafts(opened: Callable[[str], Model], tmp_path: Path) -> None:
    """Of one seed, with drafters that are deterministic."""
    target, prompt = opened("target"), tokenizer().encode(PROMPT).ids
    settings: dict[str, Any] = {"max_new_tokens": 30, "eos": (), "temperature": 0.8, "seed": 4}
    plain = list(target.generate(prompt, **settings).tokens)
    for name, drafter in drafters(opened, plain, tmp_path).items():
        if drafter.sampling == "deterministic":
            found = target.generate(prompt, drafter=drafter, num_draft_tokens=6, **settings)
            assert list(found.tokens) == plain, name


def test_segments_in_a_row_are_the_model(opened: Callable[[str], Model]) -> None:
    first, second, whole = (decoder(opened(n).session) for n in ("first", "second", "target"))
    tokens = list(range(5, 45))
    for start in range(0, 40, 10):
        chunk = tokens[start : start + 10]
        first.extend(chunk)
        second.extend(chunk, features=first.features(start, start + 10))
        whole.extend(chunk)
    tree, parents = [7, 8, 9], [-1, 0, 0]
    features = first.forward(tree, parents).features
    got = second.forward(tree, parents, features=features).logits
    np.testing.assert_allclose(got, whole.forward(tree, parents).logits, rtol=1e-4, atol=1e-4)


def test_what_cannot_be_compiled(folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "m.edge"
    for options, match in (
        ({"layers": (0, 3)}, "no such layers"),
        ({"layers": (0, 1), "features": True}, "give their features anyway"),
        ({"features": True, "task": None}, "those of language models"),
    ):
        settings: dict[str, Any] = {"task": "text-generation", **options}
        with pytest.raises(InputError, match=match):
            sdk.compile(folder, target="onnxruntime", output=output, **settings)
    assert not output.exists()


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["w8", "int4"])
def test_greedy_tokens_of_low_precisions(
    opened: Callable[[str], Model], folder: Path, tmp_path: Path, engine: str, precision: str
) -> None:
    output = tmp_path / "m.edge"
    sdk.compile(
        folder, task="text-generation", features=True, target=f"{engine}:cpu:{precision}",
        group_size=16 if precision == "int4" else None, output=output,
        waive=["slower", "fidelity"], threads=1,
    )  # fmt: skip
    prompt = tokenizer().encode(PROMPT).ids
    with sdk.load(output, threads=1) as target:
        assert target.target.precision == precision
        plain = list(target.generate(prompt, max_new_tokens=TOKENS, eos=()).tokens)
        for name, drafter in drafters(opened, plain, tmp_path).items():
            found = target.generate(
                prompt, max_new_tokens=TOKENS, eos=(), drafter=drafter, num_draft_tokens=6
            )
            assert same_but_for_ties(target, prompt, plain, found.tokens), name
