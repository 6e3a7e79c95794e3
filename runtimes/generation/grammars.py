"""Languages that an output can be held to. What is here is data; `constraints.py` compiles it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import InitVar, dataclass, field
from typing import Any

from sdk.errors import InputError


@dataclass(frozen=True, slots=True)
class JsonSchema:
    """JSON that is valid by `schema`: a mapping, its JSON text, or True for any JSON.

    Properties come in the schema's order. Keywords that cannot be enforced are refused when the
    schema is compiled; none is ignored, but `format` is held to as far as a regular expression
    goes: a date may be February 29 of any year. InputError where `schema` is not JSON.
    """

    schema: InitVar[Mapping[str, Any] | bool | str]
    whitespace: bool = field(default=True, kw_only=True)
    """Allow whitespace between tokens of JSON, as much as the model likes; small models need False
    where they do not stop."""
    text: str = field(init=False)
    """The schema as JSON."""

    def __post_init__(self, schema: Mapping[str, Any] | bool | str) -> None:
        object.__setattr__(self, "text", _as_json(schema))


@dataclass(frozen=True, slots=True)
class Regex:
    """Text that `pattern` matches from its beginning to its end, in the syntax of Rust's `regex`.

    That is Python's without look-around and back-references; `.` is not a newline.
    """

    pattern: str


@dataclass(frozen=True, slots=True)
class Lark:
    """Text of a context-free grammar in the syntax of Lark, whose first symbol is `start`."""

    grammar: str


Grammar = JsonSchema | Regex | Lark


def _as_json(schema: Mapping[str, Any] | bool | str) -> str:
    try:
        if isinstance(schema, str):
            schema = json.loads(schema)
        return json.dumps({} if schema is True else schema, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InputError(
            "The schema is not JSON.",
            expected="a mapping or JSON text with strings, numbers, booleans, null and their lists",
            got=error,
        ) from error
