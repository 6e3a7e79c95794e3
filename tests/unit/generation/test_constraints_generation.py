"""Generation under a grammar: the law, seeds, drafts, forced tokens, and where nothing is legal."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import jsonschema
import numpy as np
import pytest
from alphabets import byte_level, trained
from enumeration import Replay, law
from feature_toys import Contexts, Giving, Taking
from toys import Model, ToySession, markov, near, whole

import sdk
from sdk.errors import GenerationError
from sdk.runtimes.generation.budget import Fixed
from sdk.runtimes.generation.cached import Cached
from sdk.runtimes.generation.config import GenerationConfig
from sdk.runtimes.generation.constraints import GrammarConstraint, Node, compile_constraint
from sdk.runtimes.generation.contracts import Drafter, Logits
from sdk.runtimes.generation.drafters.fused import FusedDrafter
from sdk.runtimes.generation.drafters.lexical_unit import LexicalUnitDrafter
from sdk.runtimes.generation.drafters.prompt_lookup import PromptLookupDrafter
from sdk.runtimes.generation.drafters.source_lookup import SourceLookupDrafter
from sdk.runtimes.generation.drafters.trigram import TrigramDrafter
from sdk.runtimes.generation.grammars import Grammar
from sdk.runtimes.generation.loop import Generation
from sdk.runtimes.generation.model_drafter import ModelDrafter
from sdk.runtimes.generation.parallel import ParallelGeneration
from sdk.runtimes.generation.sorted_drafter import SortedDrafter
from sdk.runtimes.generation.transforms import softmax, truncated
from sdk.runtimes.generation.trigram_table import TrigramTable
from sdk.runtimes.generation.verifiers import named

pytest.importorskip("llguidance")
pytest.importorskip("tokenizers")

LETTERS = trained()
V = len(LETTERS.spelled)
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "pattern": "^[A-Z][a-z]{2,6}$"},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "tags": {"type": "array", "items": {"enum": ["red", "blue"]}, "maxItems": 4},
        "born": {"type": "string", "format": "date"},
    },
    "required": ["name", "age", "tags", "born"],
    "additionalProperties": False,
}
SCHEMAS: dict[str, Any] = {
    "person": PERSON,
    "choice": {"anyOf": [{"type": "null"}, {"const": {"a": [1, 2]}}, {"$ref": "#/$defs/x"}]}
    | {"$defs": {"x": {"type": "string", "maxLength": 5}}},
    "tuple": {
        "type": "array",
        "prefixItems": [
            {"type": "boolean"},
            {"type": "integer", "multipleOf": 7, "maximum": 99},
            {"type": "string", "minLength": 2, "maxLength": 6},
        ],
        "items": False,
        "minItems": 3,
    },
    "nested": {
        "type": "object",
        "properties": {"left": {"$ref": "#"}, "v": {"enum": [0, "é", None]}},
        "required": ["v"],
        "additionalProperties": False,
    },
}


@cache
def compiled(grammar: Grammar) -> GrammarConstraint:
    return compile_constraint(grammar, LETTERS.text, vocabulary=V, eos=(LETTERS.eos,))


def strict(name: str) -> GrammarConstraint:
    return compiled(sdk.JsonSchema(SCHEMAS[name], whitespace=False))


def generate(
    model: Model,
    constraint: GrammarConstraint,
    *,
    make: type[Generation] = Generation,
    **parts: Any,
) -> Generation:
    config = GenerationConfig(max_new_tokens=400, eos=(LETTERS.eos,))
    config = replace(config, **{k: parts.pop(k) for k in ("temperature", "seed") if k in parts})
    cached = Cached(ToySession(model, V, capacity=512))
    made = make(cached, [1, 2, 3], config, constraint=constraint, **parts)
    for _ in made:
        pass
    return made


def text(generation: Generation) -> str:
    assert generation.finish_reason == "eos"
    return LETTERS.spell(generation.tokens).decode()


@pytest.mark.parametrize("temperature", [0.0, 0.7, 3.0])
@pytest.mark.parametrize("name", SCHEMAS)
def test_outputs_are_valid(name: str, temperature: float) -> None:
    checker = jsonschema.Draft202012Validator(
        SCHEMAS[name], format_checker=jsonschema.FormatChecker()
    )
    texts = set()
    for seed in range(4):
        model = whole(V, seed)
        found = text(generate(model, strict(name), temperature=temperature, seed=seed))
        assert list(checker.iter_errors(json.loads(found))) == []
        texts.add(found)
    assert len(texts) > 1


@pytest.mark.parametrize(
    "grammar",
    [
        sdk.Regex(r"(\d{3}-){1,3}x"),
        sdk.Lark('start: item ("," item){0,4}\nitem: /[a-c]{1,2}/ | "(" start ")"'),
    ],
)
def test_every_prefix_is_the_beginning_of_a_word(grammar: Grammar) -> None:
    """Each step is legal for a parser that reads the prefix anew, and so is its end."""
    generation = generate(whole(V, 4), compiled(grammar), temperature=1.5)
    for end in range(len(generation.tokens)):
        fresh = compile_constraint(grammar, LETTERS.text, vocabulary=V, eos=(LETTERS.eos,))
        state = fresh.start()
        for token in generation.tokens[:end]:
            state = fresh.advance(state, token)
        assert fresh.allowed(state)[generation.tokens[end]]
    assert generation.tokens[-1] == LETTERS.eos


class Unforced:
    """The same language, of which nothing is known in advance: one token a step."""

    def __init__(self, constraint: GrammarConstraint) -> None:
        self.start, self.advance = constraint.start, constraint.advance
        self.allowed, self.permits = constraint.allowed, constraint.permits

    def forced(self, state: Node) -> Sequence[int]:
        return ()


def model_drafter(model: Model, **settings: Any) -> ModelDrafter:
    session = ToySession(near(model, 5, noise=0.3), V, capacity=512)
    return ModelDrafter(session, sampling="deterministic", **settings)


def sorted_drafter(model: Model) -> SortedDrafter:
    contexts, draft = Contexts(), near(model, 5, noise=0.3)
    first = Giving(near(draft, 6, noise=0.3), V, contexts, capacity=512)
    second = Taking(draft, V, contexts, joined=False, capacity=512)
    return SortedDrafter([first, second], sampling="deterministic")


DRAFTERS: dict[str, Callable[[Model], Drafter]] = {
    "prompt lookup": lambda model: PromptLookupDrafter(),
    "trigram": lambda model: TrigramDrafter(TrigramTable(V)),
    "chain": model_drafter,
    "tree": lambda model: model_drafter(model, branching_factor=2),
    "fused": lambda model: FusedDrafter(model_drafter(model), PromptLookupDrafter()),
    "sorted": sorted_drafter,
    "lexical unit": lambda model: LexicalUnitDrafter(3),
    "source lookup": lambda model: SourceLookupDrafter(list(range(V)) * 2),
}


UNRELATED = ("lexical unit", "source lookup")
"""Guesses that have nothing to do with this model."""


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("name", DRAFTERS)
def test_speculation_changes_no_token(name: str, temperature: float) -> None:
    model, accepted = whole(V, 7, period=4), 0
    drafter = DRAFTERS[name](model)
    for seed in range(2):
        settings: dict[str, Any] = {"temperature": temperature, "seed": seed}
        plain = generate(model, Unforced(strict("person")), **settings)  # type: ignore[arg-type]
        assert plain.statistics.mean_accepted_tokens == 1
        forced = generate(model, strict("person"), **settings)
        drafted = generate(model, strict("person"), drafter=drafter, budget=Fixed(6), **settings)
        alone = generate(
            model,
            Unforced(strict("person")),  # type: ignore[arg-type]
            drafter=drafter,
            budget=Fixed(6),
            **settings,
        )
        assert plain.tokens == forced.tokens == drafted.tokens == alone.tokens
        accepted += alone.statistics.draft_tokens_accepted
    assert accepted >= 5 or name in UNRELATED


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_drafting_in_parallel_changes_no_token(temperature: float) -> None:
    """Target and draft then ask the parser from two threads."""
    model = whole(V, 7)
    plain = generate(model, strict("person"), temperature=temperature)
    drafted = generate(
        model,
        strict("person"),
        make=ParallelGeneration,
        drafter=model_drafter(model),
        budget=Fixed(4),
        temperature=temperature,
    )
    assert drafted.tokens == plain.tokens
    assert drafted.statistics.draft_tokens_accepted > 10


def test_greedy_is_the_best_legal_token() -> None:
    """Step by step, with no code of the loop."""
    model, constraint = whole(V, 3), strict("person")
    state, tokens = constraint.start(), list[int]()
    while not tokens or tokens[-1] != LETTERS.eos:
        logits = model((1, 2, 3, *tokens)).astype(np.float64)
        tokens.append(int(np.where(constraint.allowed(state), logits, -np.inf).argmax()))
        state = constraint.advance(state, tokens[-1])
    assert generate(model, constraint).tokens == tokens


def test_forced_tokens_are_free() -> None:
    """Without a drafter: property names and brackets come with the pass before them."""
    found = generate(whole(V, 3), strict("person")).statistics
    assert found.acceptance_rate == 1
    assert found.draft_tokens_accepted > 15
    assert found.target_forward_passes <= found.new_tokens - found.draft_tokens_accepted
    assert found.num_drafts >= 4


TOY = byte_level("a", "b", "ab")  # and the end: 4 tokens
WORDS = [b"ab", b"aba", b"abb", b"ba", b"baa", b"bab"]
DRAFTS = {
    # name: verifier, sampling, branching, budget
    "none": ("sample_match", "deterministic", 1, 0),
    "chain": ("speculative_sampling", "iid", 1, 2),
    "matched": ("sample_match", "deterministic", 2, 4),
    "k_seq": ("k_seq", "iid", 2, 3),
    "without replacement": ("rrs_without_replacement", "without_replacement", 2, 4),
    "greedy draft": ("greedy_draft", "greedy", 2, 4),
}
CONFIGS = {
    "plain": GenerationConfig(max_new_tokens=4, temperature=1.0, eos=(3,)),
    "truncated": GenerationConfig(
        max_new_tokens=3, temperature=0.7, top_p=0.9, top_k=3, eos=(3,), repetition_penalty=1.2
    ),
}


def masked_law(model: Model, config: GenerationConfig) -> dict[tuple[int, ...], float]:
    """Token by token, each law cut down to what the list of words allows."""
    found: dict[tuple[int, ...], float] = {}

    def extend(output: tuple[int, ...], probability: float) -> None:
        if len(output) == config.max_new_tokens or output[-1:] == (3,):
            found[output] = probability
            return
        row = _row(model((0, *output)), output, config)
        for token in np.flatnonzero(row).tolist():
            extend((*output, token), probability * float(row[token]))

    extend((), 1.0)
    return found


def _row(logits: Logits, output: tuple[int, ...], config: GenerationConfig) -> Any:
    scores = logits.astype(np.float64)
    for token in {0, *output}:
        factor = config.repetition_penalty
        scores[token] = scores[token] / factor if scores[token] > 0 else scores[token] * factor
    prefix = TOY.spell(list(output))
    for token, said in enumerate(TOY.spelled):
        goes_on = prefix in WORDS if token == 3 else any(w.startswith(prefix + said) for w in WORDS)
        scores[token] = scores[token] if goes_on else -np.inf
    if config.top_k or config.top_p < 1:
        return truncated(scores, config)
    return softmax(scores / config.temperature)


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("name", DRAFTS)
def test_the_law_is_the_masked_one(name: str, config: str) -> None:
    rule, sampling, branching, budget = DRAFTS[name]
    target, settings = markov(4, 1), CONFIGS[config]
    constraint = compile_constraint(sdk.Regex("(ab|ba)[ab]?"), TOY.text, vocabulary=4, eos=(3,))

    def output(chance: Replay) -> tuple[int, ...]:
        session = ToySession(markov(4, 2, sharpness=1.0), 4)
        guess = ModelDrafter(session, sampling=sampling, branching_factor=branching, tree_depth=2)
        generation = Generation(
            Cached(ToySession(target, 4)),
            [0],
            settings,
            drafter=guess,
            verifier=named(rule),
            budget=Fixed(budget),
            constraint=constraint,
            chance=chance,
        )
        return tuple(token.id for token in generation)

    want, got = masked_law(target, settings), law(output)
    assert sum(want.values()) == pytest.approx(1, abs=1e-12)
    assert set(got) == set(want)
    assert max(abs(got[key] - want[key]) for key in want) < 1e-12


def test_no_legal_token() -> None:
    """The vocabulary cannot go on; the session is still good for another request."""

    def likes_a(tokens: tuple[int, ...]) -> Logits:
        return np.float32([3, 2, 1, 0])

    cached = Cached(ToySession(likes_a, 4))
    for pattern in ("abc|b", "c"):
        constraint = compile_constraint(sdk.Regex(pattern), TOY.text, vocabulary=4, eos=(3,))
        with pytest.raises(GenerationError, match="No token may come next"):
            list(Generation(cached, [0], CONFIGS["plain"], constraint=constraint))
    constraint = compile_constraint(sdk.Regex("ab"), TOY.text, vocabulary=4, eos=(3,))
    generation = Generation(cached, [0], GenerationConfig(eos=(3,)), constraint=constraint)
    assert [token.id for token in generation] == [2, 3]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("branching", [1, 2])
def test_a_draft_that_cannot_go_on_ends(branching: int, temperature: float) -> None:
    """The draft begins the word that the vocabulary cannot finish; the target takes the other."""

    def likes(first: int) -> Model:
        row = np.zeros(4, np.float32)
        row[first] = 50
        return lambda tokens: row

    constraint = compile_constraint(sdk.Regex("ab{1,2}c|ba"), TOY.text, vocabulary=4, eos=(3,))
    found = []
    for draft in (None, ModelDrafter(ToySession(likes(2), 4), branching_factor=branching)):
        config = GenerationConfig(eos=(3,), max_new_tokens=5, temperature=temperature)
        cached = Cached(ToySession(likes(TOY.spelled.index(b"b")), 4))
        found.append(
            [
                token.id
                for token in Generation(
                    cached, [0], config, drafter=draft, budget=Fixed(4), constraint=constraint
                )
            ]
        )
        if draft is not None:
            assert draft.forward_passes > 1
    assert found[0] == found[1]
    assert found[0][-1] == 3


def test_a_word_may_not_end_before_the_least_length() -> None:
    constraint = compile_constraint(sdk.Regex("ab"), TOY.text, vocabulary=4, eos=(3,))
    config = GenerationConfig(eos=(3,), min_new_tokens=5)
    generation = Generation(Cached(ToySession(markov(4, 1), 4)), [0], config, constraint=constraint)
    with pytest.raises(GenerationError, match="min_new_tokens"):
        list(generation)
