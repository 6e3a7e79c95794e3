"""Structured output: a grammar as a `Constraint`, by the library llguidance.

The library has one parser that goes forward and back; states are nodes of the tree of outputs, and
the parser is moved to a node when something is asked there. So the nodes of a draft, the drafter's
states and the target's cost what they differ in, and share what the parser has learnt.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from sdk.errors import GenerationError, InputError
from sdk.extras import require
from sdk.runtimes.generation.contracts import Mask
from sdk.runtimes.generation.grammars import Grammar, JsonSchema, Lark, Regex

MASKS, NODES = 128, 4096
"""Of the latest states, how many masks and how many states themselves are kept for a second use."""

STUCK = "NoExtensionBias"
"""The library's word for text that must go on where no token of the vocabulary does."""


class Node:
    """A state: the tokens from the start down to here."""

    __slots__ = ("dead", "depth", "parent", "token")

    def __init__(self, parent: Node | None, token: int, *, dead: bool = False) -> None:
        self.parent, self.token = parent, token
        self.depth: int = 0 if parent is None else parent.depth + 1
        self.dead = dead
        """Nothing may follow: the output has ended, or this is no prefix of a legal one."""


class GrammarConstraint:
    """A `Constraint` by llguidance's parser. Threads may share it; they take turns.

    `make` gives a new parser; one that ran into its limits is of no further use.
    """

    def __init__(self, make: Callable[[], Any], vocabulary: int, eos: Sequence[int]) -> None:
        self._make, self._parser = make, make()
        self._vocabulary, self._eos = vocabulary, frozenset(eos)
        self._root = self._here = Node(None, -1)
        self._nodes: dict[tuple[Node, int], Node] = {}
        self._masks: dict[Node, bytes] = {}
        self._turn = threading.Lock()

    def start(self) -> Node:
        """The state before the first output token."""
        return self._root

    def advance(self, state: Node, token: int) -> Node:
        """The state after `token`; nothing may follow an illegal one, or the end."""
        with self._turn:
            node = self._nodes.get((state, token))
            if node is None:
                node = Node(state, token, dead=state.dead or token in self._eos)
                _keep(self._nodes, (state, token), node, NODES)
            return node

    def allowed(self, state: Node) -> Mask:
        """[V]: the tokens that may come next; those of end-of-sequence where it may end.

        GenerationError where the parser ran into its limits.
        """
        with self._turn:
            bits = self._masks.get(state)
            if bits is None:
                if not self._move(state):
                    return np.zeros(self._vocabulary, np.bool_)
                bits = self._bits()
                _keep(self._masks, state, bits, MASKS)
        packed = np.frombuffer(bits, np.uint8)
        return np.unpackbits(packed, count=self._vocabulary, bitorder="little").view(np.bool_)

    def permits(self, state: Node, token: int) -> bool:
        """`allowed(state)[token]`, without working out the others."""
        with self._turn:
            bits = self._masks.get(state)
            if bits is not None:
                return bool(bits[token >> 3] >> (token & 7) & 1)
            if not self._move(state):
                return False
            if token in self._eos:
                return bool(self._checked(self._parser.is_accepting()))
            only = self._checked(self._parser.compute_ff_tokens())
            if only:
                return bool(token == only[0])
            return bool(self._checked(self._parser.validate_tokens([token])) == 1)

    def forced(self, state: Node) -> Sequence[int]:
        """Tokens that spell the text that must come next, as the tokenizer would put it.

        Other spellings of that text are not legal: none of them is what a model has learnt.
        """
        with self._turn:
            if not self._move(state):
                return ()
            found: list[int] = self._checked(self._parser.compute_ff_tokens())
            return found

    def complete(self, state: Node) -> bool:
        """Whether the output may end here."""
        with self._turn:
            return self._move(state) and bool(self._checked(self._parser.is_accepting()))

    def _move(self, node: Node) -> bool:
        """Bring the parser to `node`; False, and on its way there, where nothing may follow it."""
        if node.dead:
            return False
        shared, down = _way(self._here, node)
        if self._here is not shared:
            self._parser.rollback(self._here.depth - shared.depth)
        count: int = self._parser.try_consume_tokens([step.token for step in down])
        self._here = down[count - 1] if count else shared
        self._checked(None)
        if count < len(down):
            down[count].dead = node.dead = True
        return count == len(down)

    def _bits(self) -> bytes:
        bits: bytes = self._parser.compute_bitmask()
        if self._parser.is_error() and _reason(self._parser.get_error()) == STUCK:
            self._renew()
            return bytes(len(bits))
        return bytes(self._checked(bits))

    def _checked(self, found: Any) -> Any:
        """`found`, unless the parser has failed on the way."""
        if not self._parser.is_error():
            return found
        reason = _reason(self._parser.get_error())
        self._renew()
        raise GenerationError(
            "The grammar cannot be followed any further.",
            expected="a grammar within the parser's limits",
            got=reason,
            fix="simplify the grammar: fewer alternatives that begin alike, shorter repetitions",
        )

    def _renew(self) -> None:
        """A parser that has failed goes nowhere any more."""
        self._parser, self._here = self._make(), self._root


def compile_constraint(
    grammar: Grammar, tokenizer: str, *, vocabulary: int, eos: Sequence[int]
) -> GrammarConstraint:
    """Hold outputs to `grammar`, in the tokens of a model.

    `tokenizer` is the text of its `tokenizer.json`: byte-level, or with bytes to fall back on.
    `vocabulary` is how many logits the model has, and `eos` which tokens end an output. InputError
    names what in the grammar or the tokenizer is unusable.
    """
    library = require("llguidance", purpose="Structured output")
    table = _table(tokenizer, vocabulary, tuple(eos))
    source, limits = _source(grammar), library.LLParserLimits(verbose_errors=False)

    def make() -> Any:
        parser = library.LLMatcher(table, source, log_level=0, limits=limits)
        if parser.is_error():
            raise _refused(grammar, _reason(parser.get_error()))
        return parser

    return GrammarConstraint(make, vocabulary, eos)


def _refused(grammar: Grammar, reason: str) -> InputError:
    kind, fix = _KINDS[type(grammar)]
    return InputError(
        f"The {kind} cannot be compiled.",
        expected="one that can be enforced token by token",
        got=reason,
        fix=fix,
    )


_KINDS = {
    JsonSchema: (
        "JSON schema",
        "say it with keywords that are enforced, or leave it out and check the output for it",
    ),
    Regex: ("regular expression", "write it in the syntax of Rust's `regex`"),
    Lark: ("grammar", "write it in the syntax of Lark, with a rule `start`"),
}


STRICT = {"lenient": False, "coerce_one_of": False}
"""Whatever a schema itself asks to ignore or to approximate is refused."""


def _source(grammar: Grammar) -> str:
    """The grammar as the library reads it."""
    matcher = require("llguidance", purpose="Structured output").LLMatcher
    if isinstance(grammar, Regex):
        return str(matcher.grammar_from_regex(grammar.pattern))
    if isinstance(grammar, Lark):
        return str(matcher.grammar_from_lark(grammar.grammar))
    options = STRICT | {"whitespace_flexible": grammar.whitespace}
    try:
        return str(matcher.grammar_from_json_schema(grammar.text, overrides=options))
    except ValueError as error:
        raise _refused(grammar, str(error)) from error


@lru_cache(maxsize=4)
def _table(tokenizer: str, vocabulary: int, eos: tuple[int, ...]) -> Any:
    """The tokens as bytes, in a trie; making one takes a quarter of a second for 50,000 tokens."""
    library = require("llguidance", purpose="Structured output")
    if not eos:
        raise InputError(
            "Structured output needs a token that ends it.",
            expected="at least one end-of-sequence token",
            got="none",
            fix="pass eos=(...) with the request",
        )
    try:
        return library.LLTokenizer(tokenizer, n_vocab=vocabulary, eos_token=list(eos))
    except ValueError as error:
        raise InputError(
            "The tokenizer cannot be used for structured output.",
            expected=f"a tokenizer.json whose tokens are bytes, of at most {vocabulary} tokens, "
            "and the tokens that end an output",
            got=error,
        ) from error


def _keep(kept: dict[Any, Any], key: Any, value: Any, most: int) -> None:
    """Remember, and forget the oldest of more than `most`."""
    if len(kept) >= most:
        del kept[next(iter(kept))]
    kept[key] = value


def _way(here: Node, there: Node) -> tuple[Node, list[Node]]:
    """The last node that two paths share, and the nodes from it down to `there`."""
    down: list[Node] = []
    while here is not there:
        if there.depth >= here.depth:
            down.append(there)
            there = _above(there)
        else:
            here = _above(here)
    return here, down[::-1]


def _above(node: Node) -> Node:
    assert node.parent is not None, "the paths have no common start"
    return node.parent


def _reason(message: str) -> str:
    """What is wrong, without the library's copy of the grammar."""
    return message.split("\n<")[0].strip()
