"""Text to tokens and back by the `tokenizers` library, and chats to text by a template."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sdk.errors import CorruptArtifactError, InputError
from sdk.extras import require
from sdk.structure import FIX

Prompt = str | Sequence[int] | Sequence[Mapping[str, str]]
"""A text, tokens, or the messages of a chat: mappings with `role` and `content`."""
MAX_TOKENIZER = 64 << 20  # bytes
UNFINISHED = "\ufffd"  # what bytes that are no character yet decode to


class Tokenizer:
    """The tokenizer of an artifact. Thread-safe."""

    def __init__(self, data: bytes, template: str | None, marks: Mapping[str, str]) -> None:
        library = require("tokenizers", purpose="Generating from text")
        try:
            self._tokenizer = library.Tokenizer.from_buffer(data)
        except ValueError as error:
            raise CorruptArtifactError(
                "The artifact's tokenizer cannot be read.", got=str(error)[:200], fix=FIX
            ) from error
        self._streams = require("tokenizers.decoders", purpose="Generating from text").DecodeStream
        self._template, self._marks = template, marks

    def encode(self, prompt: str | Sequence[Mapping[str, str]]) -> list[int]:
        """Tokens of a text, with those that the tokenizer puts around it, or of a chat."""
        plain = isinstance(prompt, str)
        text = prompt if isinstance(prompt, str) else self._rendered(prompt)
        try:
            return list(self._tokenizer.encode(text, add_special_tokens=plain).ids)
        except TypeError as error:  # what it says of half a surrogate pair
            raise InputError("The prompt is not Unicode text.", got=repr(text)[:80]) from error

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of tokens, without special ones."""
        return str(self._tokenizer.decode(tokens))

    def vocabulary(self) -> dict[str, int]:
        """Each token's text and number."""
        return dict(self._tokenizer.get_vocab(with_added_tokens=True))

    def to_json(self) -> str:
        """The text of its `tokenizer.json`."""
        return str(self._tokenizer.to_str())

    def following(self, context: Iterable[int]) -> Following:
        """Decodes what comes behind `context`, token by token."""
        return Following(self._tokenizer, self._streams(list(context), True))

    def check_chat(self) -> None:
        """InputError where there is no chat template."""
        if self._template is None:
            raise InputError(
                "The artifact has no chat template.",
                expected="a text or tokens",
                got="messages of a chat",
                fix="write the prompt out as the model was trained on it",
            )

    def _rendered(self, messages: Sequence[Mapping[str, str]]) -> str:
        self.check_chat()
        sandbox = require("jinja2.sandbox", purpose="A chat", extra="generate")
        errors = require("jinja2", purpose="A chat", extra="generate").TemplateError
        environment = sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        environment.globals["raise_exception"] = _refuse
        try:
            template = environment.from_string(self._template or "")
            return str(
                template.render(messages=messages, add_generation_prompt=True, **self._marks)
            )
        except errors as error:
            raise InputError("The chat does not fit the model's template.", got=error) from error


class Following:
    """Text behind a context in whole characters."""

    def __init__(self, tokenizer: Any, stream: Any) -> None:
        self._tokenizer, self._stream = tokenizer, stream

    def add(self, token: int) -> str:
        """What is certain now; empty while a character is not whole."""
        return self._stream.step(self._tokenizer, token) or ""


def _refuse(message: str) -> None:
    raise InputError("The chat does not fit the model's template.", got=message)


class Stops:
    """Watches a text that comes in pieces for strings that end it."""

    def __init__(self, strings: str | Sequence[str]) -> None:
        self._strings = (strings,) if isinstance(strings, str) else tuple(strings)
        if not all(self._strings):
            raise InputError("A stop string is empty.", expected="texts of a character or more")
        self._held = ""
        self.found = False

    def add(self, piece: str) -> str:
        """What may be shown: up to a stop string, less an end that could become one."""
        if not self._strings:
            return piece
        text = self._held + piece
        places = [place for stop in self._strings if (place := text.find(stop)) >= 0]
        if places:
            self.found, self._held = True, ""
            return text[: min(places)]
        held = max((_overlap(text, stop) for stop in self._strings), default=0)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]

    def rest(self) -> str:
        """What was held back; it became none."""
        text, self._held = self._held, ""
        return text


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that `stop` begins with."""
    most = min(len(text), len(stop) - 1)
    return next((n for n in range(most, 0, -1) if text.endswith(stop[:n])), 0)
