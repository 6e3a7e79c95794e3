"""Ways to ask a loaded model: async, batches, conversations, schedules; and what it refuses."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from language_models import tokenizer, write_folder

import sdk
from sdk.errors import CorruptArtifactError, GenerationError, InputError
from sdk.generating import LanguageModel
from sdk.model import Model
from sdk.runtimes.generation.budget import PROBES, Heuristic
from sdk.runtimes.generation.contracts import DETERMINISTIC, DraftTree, Outcome, Request
from sdk.runtimes.generation.datastore import Datastore
from sdk.runtimes.generation.drafters.lexical_unit import LexicalUnitDrafter
from sdk.runtimes.generation.trigram_table import TrigramTable

PROMPT = "The fox jumps, the dog sleeps. The fox"
PROMPTS = (PROMPT, "A cat", PROMPT + " lives", [5, 6, 7])


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> sdk.Artifact:
    root = tmp_path_factory.mktemp("llama")
    folder = write_folder("llama", root / "folder")
    output = root / "m.edge"
    return sdk.compile(
        folder, task="text-generation", target="onnxruntime", output=output, threads=1
    )


@pytest.fixture
def llama(artifact: sdk.Artifact) -> Iterator[Model]:
    with sdk.load(artifact.path, threads=1) as made:
        yield made


def test_prompts_one_after_another_share_their_beginning(llama: Model) -> None:
    alone = [llama.generate(prompt, max_new_tokens=12).tokens for prompt in PROMPTS]
    llama.generate([9, 9], max_new_tokens=1)
    together = llama.generate_all(PROMPTS, max_new_tokens=12, drafter="prompt_lookup")
    assert [result.tokens for result in together] == alone
    shared = len(tokenizer().encode(PROMPT).ids)
    assert together[2].stats.cached_tokens >= shared - 1
    assert llama.generate_all([]) == []


def test_async_results_are_the_same(llama: Model) -> None:
    plain = llama.generate(PROMPT, max_new_tokens=20, temperature=1.0)

    async def ask() -> tuple[sdk.GenerationResult, list[str]]:
        whole = await llama.agenerate(PROMPT, max_new_tokens=20, temperature=1.0)
        pieces = [piece async for piece in llama.astream(PROMPT, max_new_tokens=20, temperature=1)]
        return whole, pieces

    whole, pieces = asyncio.run(ask())
    assert whole.tokens == plain.tokens
    assert "".join(pieces) == plain.text


@pytest.mark.parametrize("streamed", [False, True])
def test_cancelling_a_task_leaves_the_cache_usable(llama: Model, streamed: bool) -> None:
    plain = llama.generate(PROMPT, max_new_tokens=100, eos=())
    began = threading.Event()

    def noticed() -> bool:
        began.set()
        return False

    async def drain() -> None:
        async for _ in llama.astream(PROMPT, max_new_tokens=100, eos=(), cancelled=noticed):
            pass

    async def ask() -> None:
        request = drain() if streamed else llama.agenerate(
            PROMPT, max_new_tokens=100, eos=(), cancelled=noticed
        )  # fmt: skip
        task = asyncio.ensure_future(request)
        await asyncio.to_thread(began.wait)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(ask())
    assert llama.generate(PROMPT, max_new_tokens=100, eos=()).tokens == plain.tokens


def test_a_conversation_keeps_its_cache(llama: Model) -> None:
    chat = llama.conversation([{"role": "system", "content": "Short."}])
    first = chat.say("The fox?", max_new_tokens=8)
    llama.generate("something else", max_new_tokens=8)  # has another cache
    second = chat.say("And the dog?", max_new_tokens=8, drafter="prompt_lookup")
    assert [message["role"] for message in chat.messages] == [
        "system", "user", "assistant", "user", "assistant",
    ]  # fmt: skip
    assert chat.messages[2]["content"] == first.text
    assert second.stats.cached_tokens >= first.stats.prompt_tokens
    assert second.tokens == llama.generate(chat.messages[:-1], max_new_tokens=8).tokens


def test_a_conversation_needs_a_template(llama: Model) -> None:
    language = llama.language
    bare = LanguageModel(llama.session, language.language, None)
    llama.__dict__["language"] = bare
    with pytest.raises(InputError, match="no tokenizer"):
        llama.conversation()


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_side_by_side_gives_the_same_tokens(llama: Model, temperature: float) -> None:
    plain = llama.generate(PROMPT, max_new_tokens=30)
    drafted = llama.generate(
        PROMPT, max_new_tokens=30, drafter=llama, schedule="parallel", num_draft_tokens=3
    )
    assert drafted.tokens == plain.tokens
    assert drafted.stats.acceptance_rate == 1
    sampled = llama.generate(
        PROMPT, max_new_tokens=30, drafter=llama, schedule="parallel", temperature=temperature
    )
    assert len(sampled.tokens) == 30 or sampled.finish_reason == "eos"


def test_a_policy_may_say_how_much_to_draft(llama: Model) -> None:
    found = llama.generate(PROMPT, max_new_tokens=30, drafter=llama, num_draft_tokens=Heuristic(2))
    assert found.stats.draft_tokens_proposed > 4 * 2
    assert found.tokens == llama.generate(PROMPT, max_new_tokens=30).tokens


class Hopeless:
    """Guesses what never comes, and takes its time."""

    sampling, chain, forward_passes = DETERMINISTIC, True, 0

    def __init__(self) -> None:
        self.asked = 0

    def begin(self, request: Request) -> None: ...

    def propose(self, context: Sequence[int], budget: int) -> DraftTree:
        self.asked += 1
        time.sleep(0.005)
        return DraftTree.chain([context[0]] * budget)

    def observe(self, outcome: Outcome) -> None: ...


def test_what_a_drafter_is_worth_stays_from_request_to_request(llama: Model) -> None:
    asked, drafter = [], Hopeless()
    for _ in range(3):
        before = drafter.asked
        found = llama.generate(PROMPT, max_new_tokens=30, drafter=drafter, eos=())
        asked.append(drafter.asked - before)
        assert found.tokens == llama.generate(PROMPT, max_new_tokens=30, eos=()).tokens
    assert asked[0] > 0
    assert max(asked[1:]) <= PROBES


def test_a_draft_model_that_rests_reads_no_prompt(llama: Model) -> None:
    found = llama.generate(PROMPT, max_new_tokens=9, drafter=llama, num_draft_tokens=0)
    assert found.stats.draft_forward_passes == 0
    (draft,) = llama.language._drafters.values()
    assert draft.cached.session.length == 0


@pytest.mark.parametrize(
    ("request_", "match"),
    [
        ({"schedule": "sideways"}, "no schedule 'sideways'"),
        ({"schedule": "parallel"}, "Only a draft model"),
        ({"schedule": "parallel", "drafter": "trigram"}, "Only a draft model"),
    ],
)
def test_schedules_that_cannot_be_followed(
    llama: Model, request_: dict[str, object], match: str
) -> None:
    with pytest.raises(InputError, match=match):
        llama.generate(PROMPT, **request_)  # type: ignore[arg-type]


def test_a_second_thread_on_one_session_is_refused(llama: Model) -> None:
    stream = iter(llama.stream(PROMPT, max_new_tokens=20))
    next(stream)
    caught: list[BaseException] = []

    def ask() -> None:
        try:
            llama.generate(PROMPT, max_new_tokens=2)
        except GenerationError as error:
            caught.append(error)

    worker = threading.Thread(target=ask)
    worker.start()
    worker.join()
    assert "share one cache" in str(caught[0])
    assert len(list(stream)) > 0
    assert llama.conversation().say("x", max_new_tokens=2).stats.new_tokens > 0


def test_logits_that_are_not_numbers(llama: Model) -> None:
    """A cache that an overflow has spoiled is an error of the request, and gone with the next."""
    plain = llama.generate(PROMPT, max_new_tokens=8)
    session: Any = llama.language.cached.session
    rows = session._rows if hasattr(session, "_rows") else session._values.array
    rows[..., : session.length, :] = np.nan
    with pytest.raises(GenerationError, match="are not numbers"):
        llama.generate(PROMPT, max_new_tokens=8)
    llama.language.cached.rollback(0)
    assert llama.generate(PROMPT, max_new_tokens=8).tokens == plain.tokens


def test_a_plan_finds_what_a_reward_likes(llama: Model) -> None:
    plain = llama.generate(PROMPT, max_new_tokens=12).text
    letter = next(c for c in "abcdefghijklmnop" if c not in plain)
    plans = [
        llama.plan(
            PROMPT, lambda text: float(letter in text), rollouts=12, enough=2.0, max_new_tokens=12,
            drafter=drafter,
        )
        for drafter in (None, "prompt_lookup")
    ]  # fmt: skip
    assert plans[0].outputs == plans[1].outputs
    assert plans[0].outputs[0][1] >= plans[0].outputs[-1][1]
    texts = [text for text, _ in plans[0].outputs]
    assert plain in texts
    assert len(set(texts)) > 3
    with pytest.raises(InputError, match="greedily"):
        llama.plan(PROMPT, len, temperature=1.0)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="out of range"):
        llama.plan(PROMPT, len, width=0)  # type: ignore[arg-type]


def test_what_is_not_verified_says_so(llama: Model) -> None:
    plain = llama.generate(PROMPT, max_new_tokens=20)
    safe = llama.generate(PROMPT, max_new_tokens=20, drafter=LexicalUnitDrafter(9))
    assert (safe.lossless, safe.tokens) == (True, plain.tokens)
    units = LexicalUnitDrafter(9, confidence=0.0, lossless=False)
    lossy = llama.generate(PROMPT, max_new_tokens=20, drafter=units)
    assert not lossy.lossless
    assert lossy.stats.target_forward_passes < 20
    never = LexicalUnitDrafter(9, confidence=1.0, lossless=False)
    assert llama.generate(PROMPT, max_new_tokens=20, drafter=never).tokens == plain.tokens


def test_damaged_stores_are_refused(tmp_path: Path) -> None:
    TrigramTable.count([[1, 2, 3]], 298).save(tmp_path / "table.npz")
    Datastore.build([[1, 2, 3]], 298, tmp_path / "store")
    for name, load in (("table.npz", TrigramTable.load), ("store", Datastore)):
        path = tmp_path / name
        path.write_bytes(path.read_bytes()[:-9])
        with pytest.raises(CorruptArtifactError, match=r"cannot be used"):
            load(path)  # type: ignore[operator]


def test_pieces_are_whole_characters(llama: Model) -> None:
    """Characters of several bytes, told token by token, whatever token they are cut at."""
    text = "Ünïcödé 日本語 😀 é"
    ids = tokenizer().encode(text).ids
    following = llama.language.tokenizer.following([])  # type: ignore[union-attr]
    pieces = [following.add(token) for token in ids]
    assert len(ids) > len(text)
    assert "�" not in "".join(pieces)
    assert "".join(pieces).strip() == text
    broken = llama.language.tokenizer.following([])  # type: ignore[union-attr]
    first = [broken.add(token) for token in tokenizer().encode("日").ids[1:-1]]
    assert "".join(first) == ""
