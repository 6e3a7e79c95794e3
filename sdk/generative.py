"""What a loaded artifact does with a prompt, where it is a language model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Unpack

from sdk.artifact import Artifact
from sdk.generating import GenerationResult, LanguageModel, Options, Settings, Stream
from sdk.runtimes.generation.contracts import Constraint, Drafter, Verifier
from sdk.runtimes.generation.grammars import Grammar
from sdk.runtimes.generation.transforms import LogitsTransform
from sdk.runtimes.session import Session
from sdk.text import Prompt


class Generative:
    """The part of a model that generates."""

    artifact: Artifact
    session: Session

    def generate(
        self,
        prompt: Prompt,
        *,
        drafter: Drafter | Generative | str | None = None,
        num_draft_tokens: int | None = None,
        verifier: Verifier | None = None,
        constraint: Constraint | Grammar | None = None,
        transforms: Sequence[LogitsTransform] = (),
        stop: str | Sequence[str] = (),
        cancelled: Callable[[], bool] = lambda: False,
        **settings: Unpack[Settings],
    ) -> GenerationResult:
        """Go on from a text, tokens or the messages of a chat.

        drafter: guesses what comes, which makes it faster and changes no law of the output: the
            name `prompt_lookup` or `trigram`, a smaller model of the same tokenizer, or a drafter.
        num_draft_tokens: tokens of a draft; by default what pays, by measured costs and acceptance.
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
        num_draft_tokens: int | None = None,
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
            drafter=drafter.language if isinstance(drafter, Generative) else drafter,
            num_draft_tokens=num_draft_tokens,
            verifier=verifier,
            constraint=constraint,
            transforms=transforms,
            stop=stop,
            cancelled=cancelled,
        )
        return self.language.start(prompt, options, settings)

    @cached_property
    def language(self) -> LanguageModel:
        """The language model, its cache and tokenizer; InputError where the artifact is none."""
        return LanguageModel.of(self.artifact, self.session)
