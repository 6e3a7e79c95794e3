"""A language model on a device: prompts to text, in pieces or as a whole."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict, cast

import numpy as np

from sdk.artifact import Artifact
from sdk.errors import InputError
from sdk.language import LANGUAGE, TEMPLATE, TOKENIZER, Language, loads
from sdk.runtimes.generation.budget import Adaptive, CostTable, Fixed
from sdk.runtimes.generation.cached import Cached
from sdk.runtimes.generation.config import GenerationConfig
from sdk.runtimes.generation.constraints import compile_constraint
from sdk.runtimes.generation.contracts import BudgetPolicy, Constraint, Drafter, Verifier
from sdk.runtimes.generation.drafters.lexical_unit import LexicalUnitDrafter
from sdk.runtimes.generation.grammars import Grammar
from sdk.runtimes.generation.in_place import decoder
from sdk.runtimes.generation.loop import STOP, Generation, Token
from sdk.runtimes.generation.lossy_units import LossyLexicalUnitGeneration
from sdk.runtimes.generation.model_drafter import ModelDrafter
from sdk.runtimes.generation.named import named
from sdk.runtimes.generation.parallel import ParallelGeneration
from sdk.runtimes.generation.planning import Plan, Planner, PlanningConfig
from sdk.runtimes.generation.sessions import is_decoder
from sdk.runtimes.generation.statistics import Statistics
from sdk.runtimes.generation.transforms import LogitsTransform
from sdk.runtimes.session import Session
from sdk.text import MAX_TOKENIZER, Following, Prompt, Stops, Tokenizer

DRAFTERS = 8
"""Whose acceptance is remembered."""
SERIAL, PARALLEL = SCHEDULES = ("serial", "parallel")


class Settings(TypedDict, total=False):
    """The settings of a request; `GenerationConfig` says what each means and its default."""

    max_new_tokens: int
    min_new_tokens: int
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    presence_penalty: float
    eos: tuple[int, ...]
    stop_tokens: tuple[int, ...]
    seed: int
    logprobs: bool


class Asked(Settings, total=False):
    """All that a request may have beside its prompt; `Model.generate` says what each is."""

    drafter: Any
    num_draft_tokens: int | BudgetPolicy | None
    schedule: str
    verifier: Verifier | None
    constraint: Constraint | Grammar | None
    transforms: Sequence[LogitsTransform]
    stop: str | Sequence[str]
    cancelled: Callable[[], bool]


@dataclass(frozen=True, slots=True)
class GenerationResult:
    """What came behind a prompt."""

    text: str
    """In whole characters, up to a stop string; empty where the artifact has no tokenizer."""
    tokens: tuple[int, ...]
    finish_reason: str
    """`eos`, `stop`, `length` or `cancelled`."""
    stats: Statistics
    lossless: bool
    """Whether the output has the law of the model alone; only a verifier can make it another."""
    logprobs: tuple[float, ...] = ()
    """Of each token under the model, before any transform; where they were asked for."""


@dataclass(frozen=True, slots=True)
class Planned:
    """What a search found: whole outputs by falling reward, and the search itself in tokens."""

    outputs: tuple[tuple[str, float], ...]
    search: Plan


@dataclass(frozen=True, kw_only=True)
class Options:
    """What a request has beside its settings; `Model.generate` says what each is."""

    drafter: Drafter | LanguageModel | Any | str | None = None
    num_draft_tokens: int | BudgetPolicy | None = None
    schedule: str = SERIAL
    verifier: Verifier | None = None
    constraint: Constraint | Grammar | None = None
    transforms: Sequence[LogitsTransform] = ()
    stop: str | Sequence[str] = ()
    cancelled: Callable[[], bool] = lambda: False


class LanguageModel:
    """A step on an engine with its cache and tokenizer. One request at a time.

    The cache stays between requests: what a prompt has in common with the last one is not read
    again.
    """

    def __init__(
        self,
        session: Session,
        language: Language,
        tokenizer: Tokenizer | None,
        encoder: Session | None = None,
    ) -> None:
        self.language, self.tokenizer, self._encoder = language, tokenizer, encoder
        self.cached = Cached(decoder(session))
        self._costs: CostTable | None = None
        self._budgets: dict[Drafter, Adaptive] = {}
        self._drafters: dict[LanguageModel, ModelDrafter] = {}
        self._named: dict[str, Drafter] = {}

    @classmethod
    def of(
        cls, artifact: Artifact, session: Session, encoder: Session | None = None
    ) -> LanguageModel:
        """From an artifact; InputError where it was not compiled for generation."""
        text = artifact.read(LANGUAGE)
        if text is None or not is_decoder(session.signature):
            raise InputError(
                "This artifact does not generate.",
                expected="a causal language model compiled for generation",
                got=f"functions {', '.join(artifact.manifest.functions)}",
                fix="compile its Hugging Face folder with task='text-generation'",
            )
        language = loads(text)
        data = artifact.read(TOKENIZER, MAX_TOKENIZER)
        template = artifact.read(TEMPLATE)
        chat = None if template is None else template.decode(errors="replace")
        tokenizer = None if data is None else Tokenizer(data, chat, language.marks)
        return cls(session, language, tokenizer, encoder)

    def warm_up(self) -> None:
        """Read a token and forget it: engines pack their weights when they first run. A model with
        an encoder has nothing to attend to before it gets a source.
        """
        if self._encoder is None:
            self.cached.session.forward((0,))
            self.cached.session.rollback(0)

    def start(self, prompt: Prompt, options: Options, settings: Settings) -> Stream:
        """A request; nothing runs before the stream is iterated."""
        tokens = self.encode(prompt)
        config = self._config(settings)
        drafter = self._drafter(options.drafter)
        tokens, source = self._read(tokens)
        made = _schedule(options.schedule, drafter)(
            self.cached,
            tokens,
            config,
            drafter=drafter,  # what _schedule allows
            verifier=options.verifier,
            budget=None if drafter is None else self._budget(drafter, options.num_draft_tokens),
            constraint=self._constraint(options.constraint, config.eos),
            transforms=options.transforms,
            cancelled=options.cancelled,
            source=source,
        )
        if options.stop and self.tokenizer is None:
            raise self._without_tokenizer("stop strings")
        following = None if self.tokenizer is None else self.tokenizer.following(tokens)
        return Stream(made, following, Stops(options.stop))

    def encode(self, prompt: Prompt) -> list[int]:
        """The prompt's tokens, if the model has room for them."""
        if isinstance(prompt, str) or (prompt and not isinstance(prompt[0], int)):
            if self.tokenizer is None:
                raise self._without_tokenizer("a text")
            tokens = self.tokenizer.encode(prompt)  # type: ignore[arg-type]
        else:
            tokens = [int(token) for token in prompt]  # type: ignore[arg-type]
        self.cached.check(tokens)
        return tokens

    def _read(self, tokens: list[int]) -> tuple[list[int], list[int]]:
        """What an output begins behind, and the source, which a model with an encoder reads."""
        start = self.language.start
        if self._encoder is None or start is None:
            return tokens, []
        with self.cached.in_use():
            self.cached.read(self._encoder.run({"source": np.array([tokens])}))
        return [start], tokens

    def check_chat(self) -> None:
        """InputError where the artifact cannot make a prompt of messages."""
        if self.tokenizer is None:
            raise self._without_tokenizer("messages of a chat")
        self.tokenizer.check_chat()

    @staticmethod
    def _without_tokenizer(got: str) -> InputError:
        return InputError(
            "The artifact has no tokenizer.",
            expected="a prompt of tokens, no stop strings and no grammar",
            got=got,
            fix="compile a folder that has a tokenizer.json",
        )

    def _constraint(
        self, given: Constraint | Grammar | None, eos: tuple[int, ...]
    ) -> Constraint | None:
        """A grammar compiled for this model's tokens; anything else as it is."""
        if not isinstance(given, Grammar):
            return given
        if self.tokenizer is None:
            raise self._without_tokenizer(f"a {type(given).__name__}")
        vocabulary = self.cached.session.vocabulary
        return compile_constraint(given, self.tokenizer.to_json(), vocabulary=vocabulary, eos=eos)

    def _drafter(self, given: Drafter | LanguageModel | Any | str | None) -> Drafter | None:
        if isinstance(given, str):
            if given not in self._named:
                self._named[given] = named(given, self.cached.session.vocabulary)
            return self._named[given]
        given = _language_of(given)
        if not isinstance(given, LanguageModel):
            return given
        if given not in self._drafters:
            self._check_vocabulary(given)
            self._drafters = {given: given.as_drafter()}
        return self._drafters[given]

    def as_drafter(self, **options: Any) -> ModelDrafter:
        """A drafter with a cache of its own."""
        session = self.cached.session.fork()
        session.rollback(0)
        return ModelDrafter(session, **options)

    def fork(self) -> LanguageModel:
        """The same model with a cache of its own, which begins as a copy of this one."""
        made = LanguageModel.__new__(LanguageModel)
        made.language, made.tokenizer, made._costs = self.language, self.tokenizer, self._costs
        made._encoder = self._encoder
        with self.cached.in_use():
            made.cached = self.cached.fork()
        made._drafters, made._named, made._budgets = {}, {}, {}
        return made

    def plan(
        self,
        prompt: Prompt,
        reward: Callable[[str], float],
        planning: PlanningConfig,
        options: Options,
        settings: Settings,
    ) -> Planned:
        """Search for outputs of a high reward; `Model.plan` says how."""
        if self.tokenizer is None:
            raise self._without_tokenizer("a reward of texts")
        tokens, source = self._read(self.encode(prompt))
        config = self._config(settings)
        drafter, text = self._drafter(options.drafter), self.tokenizer.decode
        planner = Planner(
            self.cached,
            tokens,
            config,
            lambda output: reward(text(output)),
            planning,
            drafter=drafter,
            budget=None if drafter is None else self._budget(drafter, options.num_draft_tokens),
            constraint=self._constraint(options.constraint, config.eos),
            transforms=options.transforms,
            source=source,
        )
        found = planner.run()
        outputs = tuple((text(output), reward) for output, reward in found.outputs)
        return Planned(outputs, found)

    def _config(self, settings: Settings) -> GenerationConfig:
        _check_names(settings)
        return GenerationConfig(**{"eos": self.language.eos, **settings})  # type: ignore[arg-type]

    def _budget(self, drafter: Drafter, given: int | BudgetPolicy | None) -> BudgetPolicy:
        """The given size or policy, or what the measured cost of width and the acceptance say.

        What was learned of a drafter stays from request to request, as its drafts do not get better
        for being tried anew; of as many drafters as one would have in use.
        """
        if isinstance(given, int):
            return Fixed(given)
        if given is not None:
            return given
        if self._costs is None:
            with self.cached.in_use():
                self._costs = CostTable.measure(self.cached.session)
        if drafter not in self._budgets:
            if len(self._budgets) == DRAFTERS:
                del self._budgets[next(iter(self._budgets))]
            self._budgets[drafter] = Adaptive(self._costs)
        return self._budgets[drafter]

    def _check_vocabulary(self, draft: LanguageModel) -> None:
        """InputError, with some tokens, where a draft's numbers mean other texts."""
        if self.tokenizer is None or draft.tokenizer is None:
            return
        ours, theirs = (set(m.vocabulary().items()) for m in (self.tokenizer, draft.tokenizer))
        other = sorted(ours ^ theirs, key=lambda entry: (entry[1], entry[0]))
        if other:
            raise InputError(
                "The draft model has another tokenizer than the target.",
                expected="the same number for each token",
                got=f"{len(other)} that differ, among them "
                + ", ".join(f"{text!r}: {number}" for text, number in other[:4]),
                fix="draft with a model of the target's tokenizer",
            )


def split(request: Asked) -> tuple[Options, Settings]:
    """The two halves of a request."""
    known = Options.__dataclass_fields__
    options = Options(**{name: value for name, value in request.items() if name in known})  # type: ignore[arg-type]
    settings = {name: value for name, value in request.items() if name not in known}
    return options, cast("Settings", settings)


def _language_of(drafter: Drafter | Any) -> Drafter | Any:
    """That of a loaded model; anything else as it is."""
    language = None if isinstance(drafter, LanguageModel) else getattr(drafter, "language", None)
    return language if isinstance(language, LanguageModel) else drafter


def _schedule(name: str, drafter: Drafter | None) -> type[Generation]:
    """The loop of a schedule; InputError where it is unknown, or the drafter cannot follow it."""
    if name not in SCHEDULES:
        raise InputError(
            f"There is no schedule {name!r}.", expected=" or ".join(SCHEDULES), got=name
        )
    if isinstance(drafter, LexicalUnitDrafter) and not drafter.lossless:
        return LossyLexicalUnitGeneration
    if name == SERIAL:
        return Generation
    if not isinstance(drafter, ModelDrafter):
        raise InputError(
            "Only a draft model can run beside the target.",
            expected="a loaded model as the drafter",
            got=type(drafter).__name__,
            fix="leave schedule out",
        )
    return ParallelGeneration


def _check_names(settings: Settings) -> None:
    unknown = [name for name in settings if name not in Settings.__annotations__]
    if unknown:
        raise InputError(
            f"There is no setting {unknown[0]!r}.",
            expected=", ".join(Settings.__annotations__),
            got=", ".join(unknown),
        )


class Stream:
    """A request that runs as its pieces of text are taken; `result` is there behind the last."""

    def __init__(self, made: Generation, following: Following | None, stops: Stops) -> None:
        self._made, self._following, self._stops = made, following, stops
        self._pieces: list[str] = []
        self._tokens: list[Token] = []
        self._reason = ""

    def __iter__(self) -> Generator[str, None, None]:
        """Text in whole characters; the model's cache is released when the loop is left."""
        if self._following is None:  # no text, and so no stop strings
            for token in self._made:
                self._tokens.append(token)
            return
        with contextlib.closing(iter(self._made)) as tokens:  # type: ignore[type-var]
            for token in tokens:
                self._tokens.append(token)
                piece = self._stops.add(self._following.add(token.id))
                if piece:
                    self._pieces.append(piece)
                    yield piece
                if self._stops.found:
                    self._reason = STOP
                    break
        rest = self._stops.rest()
        if rest:
            self._pieces.append(rest)
            yield rest

    @property
    def result(self) -> GenerationResult:
        """What came so far; all of it once the stream was iterated."""
        logprobs = (token.logprob for token in self._tokens)
        return GenerationResult(
            text="".join(self._pieces),
            tokens=tuple(token.id for token in self._tokens),
            finish_reason=self._reason or self._made.finish_reason,
            stats=self._made.statistics,
            lossless=self._made.verifier.lossless,
            logprobs=tuple(value for value in logprobs if value is not None),
        )
