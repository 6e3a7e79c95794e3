"""What a loaded artifact does with a prompt, where it is a language model."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from functools import cached_property
from typing import Unpack

from sdk.artifact import Artifact
from sdk.conversation import Conversation
from sdk.generating import (
    SERIAL,
    Asked,
    GenerationResult,
    LanguageModel,
    Options,
    Planned,
    Settings,
    Stream,
    split,
)
from sdk.runtimes import open_session
from sdk.runtimes.generation.contracts import IID, BudgetPolicy, Constraint, Drafter, Verifier
from sdk.runtimes.generation.grammars import Grammar
from sdk.runtimes.generation.model_drafter import ModelDrafter
from sdk.runtimes.generation.planning import PlanningConfig
from sdk.runtimes.generation.transforms import LogitsTransform
from sdk.runtimes.huge_pages import HugePages
from sdk.runtimes.session import Session
from sdk.target import Target
from sdk.text import Prompt


class Generative:
    """The part of a model that generates."""

    artifact: Artifact
    session: Session
    target: Target
    threads: int
    _pages: HugePages

    def generate(
        self,
        prompt: Prompt,
        *,
        drafter: Drafter | Generative | str | None = None,
        num_draft_tokens: int | BudgetPolicy | None = None,
        schedule: str = SERIAL,
        verifier: Verifier | None = None,
        constraint: Constraint | Grammar | None = None,
        transforms: Sequence[LogitsTransform] = (),
        stop: str | Sequence[str] = (),
        cancelled: Callable[[], bool] = lambda: False,
        **settings: Unpack[Settings],
    ) -> GenerationResult:
        """Go on from a text, tokens or the messages of a chat.

        drafter: guesses what comes, which makes it faster and changes no law of the output: the
            name `prompt_lookup`, `trigram` or `fused` (both), a smaller model of the same
            tokenizer, or a drafter.
        num_draft_tokens: tokens of a draft, or a policy; by default what pays, by measured costs
            and acceptance, which may be none.
        schedule: `parallel` lets a draft model run beside the target (PEARL), on another core.
        verifier: how drafts are accepted; by default the best one that is exact for the drafter.
        constraint: a language that the output must belong to: `sdk.JsonSchema`, `sdk.Regex`,
            `sdk.Lark`, or one's own. An output that `max_new_tokens` cuts short is only the
            beginning of a word of it.
        transforms: what else is done to the logits.
        stop: strings that end the output and are no part of its text.
        cancelled: asked before each round whether to stop.
        settings: `max_new_tokens`, `temperature` (0: the most probable token), `top_k`, `top_p`,
            `min_p`, `repetition_penalty`, `presence_penalty`, `min_new_tokens`, `stop_tokens`,
            `eos`, `seed`, `logprobs`: see `GenerationConfig`.

        One request at a time: a second one meanwhile raises GenerationError, and so do logits that
        are no numbers. InputError for an empty prompt, one longer than the context, and settings
        out of range.
        """
        stream = self.stream(
            prompt,
            drafter=drafter,
            num_draft_tokens=num_draft_tokens,
            schedule=schedule,
            verifier=verifier,
            constraint=constraint,
            transforms=transforms,
            stop=stop,
            cancelled=cancelled,
            **settings,
        )
        for _ in stream:
            pass
        return stream.result

    def stream(
        self,
        prompt: Prompt,
        *,
        drafter: Drafter | Generative | str | None = None,
        num_draft_tokens: int | BudgetPolicy | None = None,
        schedule: str = SERIAL,
        verifier: Verifier | None = None,
        constraint: Constraint | Grammar | None = None,
        transforms: Sequence[LogitsTransform] = (),
        stop: str | Sequence[str] = (),
        cancelled: Callable[[], bool] = lambda: False,
        **settings: Unpack[Settings],
    ) -> Stream:
        """As `generate`, in pieces of whole characters: iterate it; `.result` is there at the end.

        Leaving the loop early cancels; the cache stays usable.
        """
        options = Options(
            drafter=drafter,
            num_draft_tokens=num_draft_tokens,
            schedule=schedule,
            verifier=verifier,
            constraint=constraint,
            transforms=transforms,
            stop=stop,
            cancelled=cancelled,
        )
        return self.language.start(prompt, options, settings)

    def generate_all(
        self, prompts: Sequence[Prompt], **request: Unpack[Asked]
    ) -> list[GenerationResult]:
        """As `generate`, for each prompt, one after another: results in the order of the prompts.

        They run in the order of their tokens, so that each finds in the cache what it has in common
        with the one before.
        """
        tokens = [self.language.encode(prompt) for prompt in prompts]
        order = sorted(range(len(tokens)), key=tokens.__getitem__)
        results = {index: self.generate(tokens[index], **request) for index in order}
        return [results[index] for index in range(len(tokens))]

    async def agenerate(self, prompt: Prompt, **request: Unpack[Asked]) -> GenerationResult:
        """As `generate`, in a worker thread; where the task is cancelled, so is the request."""
        stop, asked = _stoppable(request)
        running = asyncio.ensure_future(asyncio.to_thread(self.generate, prompt, **asked))
        try:
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            stop.set()
            await asyncio.wait([running])  # the cache is free again
            raise

    async def astream(self, prompt: Prompt, **request: Unpack[Asked]) -> AsyncIterator[str]:
        """As `stream`, in a worker thread; leaving the loop or the task cancels."""
        stop, asked = _stoppable(request)
        pieces, turn = iter(self.stream(prompt, **asked)), threading.Lock()

        def take() -> str | None:
            with turn:
                return next(pieces, None)

        def close() -> None:
            with turn:
                pieces.close()

        try:
            while (piece := await asyncio.to_thread(take)) is not None:
                yield piece
        finally:
            stop.set()
            await asyncio.shield(asyncio.to_thread(close))

    def plan(
        self,
        prompt: Prompt,
        reward: Callable[[str], float],
        *,
        width: int = 3,
        rollouts: int = 64,
        enough: float = 1.0,
        **request: Unpack[Asked],
    ) -> Planned:
        """Search for an output with a high `reward`, which is asked for whole outputs (PG-TD).

        width: most probable tokens that the search tries at a place.
        rollouts: outputs that it looks at, unless one has the reward `enough` before.
        request: as for `generate`, but for what only streams or samples.
        """
        planning = PlanningConfig(width=width, rollouts=rollouts, enough=enough)
        return self.language.plan(prompt, reward, planning, *split(request))

    def conversation(
        self,
        messages: Sequence[Mapping[str, str]] = (),
        *,
        drafter: Drafter | Generative | str | None = None,
    ) -> Conversation:
        """A chat with a cache of its own, so that no turn is read twice.

        InputError where the artifact has no chat template.
        """
        return Conversation(self.language.fork(), messages, drafter=drafter)

    def as_drafter(
        self,
        *,
        sampling: str = IID,
        branching_factor: int = 1,
        tree_depth: int = 4,
        confidence_threshold: float = 0.0,
    ) -> ModelDrafter:
        """This model as a drafter for others of its tokenizer, in more ways than a plain chain.

        sampling: how guesses are drawn where the request samples: `iid`, `without_replacement`,
            `greedy` or `deterministic`.
        branching_factor, tree_depth: of a tree; 1 is a chain, as deep as the budget.
        confidence_threshold: ends a chain before a guess of which it is less sure.
        """
        return self.language.as_drafter(
            sampling=sampling,
            branching_factor=branching_factor,
            tree_depth=tree_depth,
            confidence_threshold=confidence_threshold,
        )

    @cached_property
    def language(self) -> LanguageModel:
        """The language model, its cache and tokenizer; InputError where the artifact is none.

        Each step will read all of its weights: on a CPU they go on huge pages, beside the first
        request.
        """
        with self._pages.watch():
            made = LanguageModel.of(self.artifact, self.session, self._encoder())
            if self._pages.on:
                made.warm_up()
        self._pages.collapse()
        return made

    def _encoder(self) -> Session | None:
        found = self.artifact.manifest.functions.get("encode")
        if found is None:
            return None
        file = self.artifact.path / found.file
        return open_session(file, found.signature, self.target, threads=self.threads)


def _stoppable(request: Asked) -> tuple[threading.Event, Asked]:
    """The request, which a flag cancels too."""
    stop, asked = threading.Event(), request.get("cancelled", lambda: False)
    return stop, {**request, "cancelled": lambda: stop.is_set() or asked()}
