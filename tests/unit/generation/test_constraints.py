"""Grammars as constraints: each mask against the language itself, and what cannot be compiled."""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from alphabets import Alphabet, byte_level, sentencepiece, trained

import sdk
from sdk.errors import GenerationError, InputError
from sdk.runtimes.generation import constraints
from sdk.runtimes.generation.constraints import GrammarConstraint, Node, compile_constraint
from sdk.runtimes.generation.grammars import Grammar

llguidance = pytest.importorskip("llguidance")
pytest.importorskip("tokenizers")

ENUM = {"type": "array", "items": {"enum": ["Tom", 12, True]}, "minItems": 1, "maxItems": 2}
MEMBERS = ('"Tom"', "12", "true")
LANGUAGES: dict[str, tuple[Grammar, list[str]]] = {
    # name: grammar, all its words
    "regex": (sdk.Regex("(cat|car|dog)s?"), ["cat", "car", "dog", "cats", "cars", "dogs"]),
    "bytes": (sdk.Regex("[éè]a? b"), ["é b", "è b", "éa b", "èa b"]),
    "lark": (
        sdk.Lark('start: word ("," word)?\nword: "red" | "blue"'),
        ["red", "blue", *map(",".join, itertools.product(["red", "blue"], repeat=2))],
    ),
    "schema": (
        sdk.JsonSchema(ENUM, whitespace=False),
        [f"[{','.join(m)}]" for n in (1, 2) for m in itertools.product(MEMBERS, repeat=n)],
    ),
    "only the empty word": (sdk.Regex(""), [""]),
}
ALPHABETS = {
    "byte-level": trained(),
    "sentencepiece": sentencepiece("é", "▁b", "ca", "re", "red", '["', "12", "tr"),
}


def compiled(grammar: Grammar, alphabet: Alphabet, **settings: Any) -> GrammarConstraint:
    given = {"vocabulary": len(alphabet.spelled), "eos": (alphabet.eos,)} | settings
    return compile_constraint(grammar, alphabet.text, **given)


def walked(constraint: GrammarConstraint, tokens: Sequence[int]) -> Node:
    state = constraint.start()
    for token in tokens:
        state = constraint.advance(state, token)
    return state


@pytest.mark.parametrize("alphabet", ALPHABETS)
@pytest.mark.parametrize("language", LANGUAGES)
def test_masks_are_the_language(language: str, alphabet: str) -> None:
    """At every prefix of every word: a token is legal if and only if a word goes on so.

    But for text that must come: of its spellings only the tokenizer's own is legal.
    """
    letters, (grammar, texts) = ALPHABETS[alphabet], LANGUAGES[language]
    words = [text.encode() for text in texts]
    starts = {word[:end] for word in words for end in range(len(word) + 1)}
    constraint, seen = compiled(grammar, letters), set[bytes]()

    def look(state: Node, prefix: bytes) -> None:
        seen.add(prefix)
        want = [bool(said) and prefix + said in starts for said in letters.spelled]
        want[letters.eos] = constraint.complete(state)
        assert want[letters.eos] == (prefix in words)
        if forced := constraint.forced(state):
            assert want[forced[0]]
            want = [token == forced[0] for token in range(len(want))]
        permitted = [constraint.permits(state, token) for token in range(len(want))]
        assert permitted == constraint.allowed(state).tolist() == want, prefix
        for token in np.flatnonzero(want[:-1]).tolist():
            if prefix + letters.spelled[token] not in seen:
                look(constraint.advance(state, token), prefix + letters.spelled[token])

    look(constraint.start(), b"")
    assert seen >= set(words)


@pytest.mark.parametrize("alphabet", ALPHABETS)
@pytest.mark.parametrize("language", LANGUAGES)
def test_forced_tokens_spell_what_must_come(language: str, alphabet: str) -> None:
    letters, (grammar, texts) = ALPHABETS[alphabet], LANGUAGES[language]
    words, constraint = [text.encode() for text in texts], compiled(grammar, letters)
    state, prefix = constraint.start(), b""
    while not constraint.complete(state):
        forced = list(constraint.forced(state))
        text = prefix + letters.spell(forced)
        assert all(word.startswith(text) for word in words if word.startswith(prefix))
        for token in forced or np.flatnonzero(constraint.allowed(state))[-1:].tolist():
            assert not forced or np.flatnonzero(constraint.allowed(state)).tolist() == [token]
            state, prefix = constraint.advance(state, token), prefix + letters.spelled[token]
    lonely = compiled(sdk.Regex("cats and dogs"), letters)
    assert letters.spell(list(lonely.forced(lonely.start()))) == b"cats and dogs"


@pytest.mark.parametrize(("masks", "nodes"), [(128, 4096), (1, 1)])
def test_states_are_values(monkeypatch: pytest.MonkeyPatch, masks: int, nodes: int) -> None:
    """Asked in any order, with anything forgotten in between, each answers as a fresh parser."""
    monkeypatch.setattr(constraints, "MASKS", masks)
    monkeypatch.setattr(constraints, "NODES", nodes)
    letters = ALPHABETS["byte-level"]
    grammar = sdk.JsonSchema({"type": "object", "additionalProperties": ENUM}, whitespace=True)
    constraint, rng = compiled(grammar, letters), np.random.default_rng(0)
    paths: list[tuple[list[int], Node]] = [([], constraint.start())]
    for _ in range(60):
        path, state = paths[rng.integers(len(paths))]
        allowed = np.flatnonzero(constraint.allowed(state))
        token = int(rng.choice(allowed)) if len(allowed) else 0
        paths.append(([*path, token], constraint.advance(state, token)))
        at, (path, state) = rng.integers(3), paths[rng.integers(len(paths))]
        fresh = compiled(grammar, letters)
        if at == 0:
            assert constraint.forced(state) == fresh.forced(walked(fresh, path))
        elif at == 1:
            assert constraint.complete(state) == fresh.complete(walked(fresh, path))
        else:
            assert np.array_equal(constraint.allowed(state), fresh.allowed(walked(fresh, path)))
    assert len(constraint._masks) <= masks
    assert len(constraint._nodes) <= nodes
    assert max(len(path) for path, _ in paths) > 5


def test_nothing_follows_the_end_or_an_illegal_token() -> None:
    letters = ALPHABETS["byte-level"]
    constraint = compiled(sdk.Regex("a+"), letters)
    a, b = letters.spelled.index(b"a"), letters.spelled.index(b"b")
    legal = walked(constraint, [a, a])
    for tokens in ([a, letters.eos], [a, b], [a, b, a], [a, letters.eos, a], [letters.eos]):
        dead = walked(constraint, tokens)
        assert not constraint.allowed(dead).any()
        assert not constraint.permits(dead, a)
        assert not constraint.complete(dead)
        assert list(constraint.forced(dead)) == []
        assert constraint.allowed(legal)[[a, letters.eos]].all()


def test_more_logits_than_tokens() -> None:
    """Models pad their vocabulary; nobody may say what has no text."""
    letters = ALPHABETS["byte-level"]
    size = len(letters.spelled)
    constraint = compiled(sdk.Regex("(?s:.*)"), letters, vocabulary=size + 20)
    mask = constraint.allowed(constraint.start())
    assert mask.shape == (size + 20,)
    assert mask[letters.eos]
    assert mask[letters.spelled.index(b"a")]
    assert not mask[size:].any()


def test_several_tokens_may_end() -> None:
    letters = ALPHABETS["byte-level"]
    ends = (letters.eos, letters.spelled.index(b"\x00"))
    constraint = compiled(sdk.Regex("ab?"), letters, eos=ends)
    state = walked(constraint, [letters.spelled.index(b"a")])
    assert constraint.allowed(state)[list(ends)].all()
    assert not constraint.allowed(constraint.start())[list(ends)].any()
    assert not constraint.allowed(constraint.advance(state, ends[1])).any()


def test_threads_take_turns() -> None:
    letters = ALPHABETS["byte-level"]
    constraint, wrong = compiled(sdk.Regex("(ab|cd)+"), letters), list[str]()
    a, b, c, d = (letters.spelled.index(x) for x in (b"a", b"b", b"c", b"d"))

    def work(pair: list[int], other: int) -> None:
        state = constraint.start()
        for _ in range(300):
            state = constraint.advance(state, pair[0])
            if constraint.permits(state, other) or not constraint.allowed(state)[pair[1]]:
                wrong.append(f"{pair} {state.depth}")
            state = constraint.advance(state, pair[1])

    threads = [threading.Thread(target=work, args=args) for args in (([a, b], d), ([c, d], b))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.parametrize(
    ("grammar", "reason"),
    [
        (sdk.JsonSchema({"type": "array", "uniqueItems": True}), "uniqueItems"),
        (sdk.JsonSchema({"properties": {"a": {"not": {"type": "string"}}}}), "not"),
        (sdk.JsonSchema({"type": "string", "format": "zip"}), "zip"),
        (sdk.JsonSchema({"type": "text"}), "text"),
        (sdk.JsonSchema({"type": "string", "minLength": 3, "maxLength": 2}), "minLength"),
        (sdk.JsonSchema({"type": "string", "pattern": "(?<!a)b"}), "look-behind"),
        (sdk.JsonSchema({"$ref": "#/$defs/gone"}), "gone"),
        (sdk.JsonSchema({"$ref": "https://example.com/a.json"}), "example.com"),
        (sdk.JsonSchema("[1]"), "object"),
        (sdk.JsonSchema(False), "object"),
        # what a schema asks to overlook is not overlooked
        (
            sdk.JsonSchema({"x-guidance": {"lenient": True}, "type": "array", "uniqueItems": True}),
            "uniqueItems",
        ),
        (sdk.Regex("(a"), "unclosed group"),
        (sdk.Regex("(?=a)b"), "look-ahead"),
        (sdk.Lark('start: "a" missing'), "missing"),
        (sdk.Lark('begin: "a"'), "start"),
        (sdk.Lark("start: ["), "1"),
    ],
)
def test_what_cannot_be_compiled(grammar: Grammar, reason: str) -> None:
    with pytest.raises(InputError, match="cannot be compiled") as caught:
        compiled(grammar, ALPHABETS["byte-level"])
    assert reason in str(caught.value.got)


@pytest.mark.parametrize("schema", ["{", {"enum": {1, 2}}, {"const": float("nan")}])
def test_a_schema_that_is_not_json(schema: Any) -> None:
    with pytest.raises(InputError, match="not JSON"):
        sdk.JsonSchema(schema)


def test_schemas_are_values() -> None:
    schema = {"type": "integer"}
    made = sdk.JsonSchema(schema)
    schema["type"] = "string"
    assert made == sdk.JsonSchema('{"type":"integer"}')
    assert len({made, sdk.JsonSchema({"type": "integer"})}) == 1
    assert json.loads(made.text) == {"type": "integer"}


def test_whitespace() -> None:
    letters = ALPHABETS["byte-level"]
    space = letters.spelled.index(b" ")
    bracket = letters.spelled.index(b"[")
    for whitespace in (True, False):
        constraint = compiled(sdk.JsonSchema(True, whitespace=whitespace), letters)
        assert constraint.permits(walked(constraint, [bracket]), space) == whitespace


@pytest.mark.parametrize(
    ("text", "settings"),
    [
        ("{", {}),
        (ALPHABETS["byte-level"].text, {"vocabulary": 200}),
        (ALPHABETS["byte-level"].text, {"eos": (10_000,)}),
        (ALPHABETS["byte-level"].text.replace("ByteLevel", "Metaspace"), {}),
    ],
)
def test_a_tokenizer_that_does_not_fit(text: str, settings: dict[str, Any]) -> None:
    letters = Alphabet(text, ALPHABETS["byte-level"].spelled)
    with pytest.raises(InputError, match="tokenizer cannot be used"):
        compiled(sdk.Regex("a"), letters, **settings)


def test_an_output_must_be_able_to_end() -> None:
    with pytest.raises(InputError, match="needs a token that ends it"):
        compiled(sdk.Regex("a"), ALPHABETS["byte-level"], eos=())


def test_the_parsers_limits() -> None:
    """A parser that gave up says why, and the next request has a new one."""
    letters = ALPHABETS["byte-level"]
    table = llguidance.LLTokenizer(letters.text)
    source = llguidance.LLMatcher.grammar_from_lark('start: ("a" | "b" start | start "b")+')
    limits = llguidance.LLParserLimits(step_max_items=40, verbose_errors=False)
    constraint = GrammarConstraint(
        lambda: llguidance.LLMatcher(table, source, log_level=0, limits=limits),
        len(letters.spelled),
        (letters.eos,),
    )
    a = letters.spelled.index(b"a")
    far = walked(constraint, [a] * 30)
    for _ in range(2):
        assert constraint.allowed(constraint.start())[a]
        with pytest.raises(GenerationError, match="cannot be followed") as caught:
            constraint.allowed(far)
        assert "limit" in str(caught.value.got)


def test_words_that_the_vocabulary_cannot_spell() -> None:
    """No token begins them."""
    letters = byte_level("a", "b", "ab")
    constraint = compiled(sdk.Regex("ab|c"), letters)
    assert constraint.allowed(constraint.start()).tolist() == [True, False, True, False]
    impossible = compiled(sdk.Regex("(ab)+c"), letters)
    ab = impossible.advance(impossible.start(), 2)
    assert impossible.allowed(ab).tolist() == [True, False, True, False]
    impossible = compiled(sdk.Regex("abc|b"), letters)
    for _ in range(2):
        assert not impossible.allowed(walked(impossible, [0, 1])).any()
        assert impossible.allowed(impossible.start()).tolist() == [True, True, True, False]
