"""Frozen dataclasses to JSON and back, strictly: the type annotations are the schema."""

from __future__ import annotations

import json
import math
import re
import reprlib
import sys
import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from typing import Any, TypeVar

from sdk.errors import CorruptArtifactError, InputError

FIX = "compile the artifact again, or copy it again from where it was made"
MAX_ITEMS = 100_000
MAX_COUNT = 2**63 - 1
MAX_FLOAT = sys.float_info.max
# Half a surrogate pair cannot be written as UTF-8; control characters would reach a terminal.
UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
T = TypeVar("T")


def to_json(value: Any) -> Any:
    """Dataclasses become objects, tuples lists; a float that JSON lacks becomes null."""
    if is_dataclass(value):
        return {field.name: to_json(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {key: to_json(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [to_json(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value


def parse(text: bytes, what: str) -> Any:
    """UTF-8 JSON of an artifact, strictly: no NaN, no key twice, no depth that overflows."""
    try:
        return json.loads(text.decode(), parse_constant=_refuse_constant, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise CorruptArtifactError(
            f"The artifact's {what} is not JSON.", got=str(error)[:200], fix=FIX
        ) from error


def from_json(cls: type[T], data: object, where: str = "manifest") -> T:
    """Build `cls` from parsed JSON; CorruptArtifactError names the first place that is wrong."""
    return typing.cast(T, _read(cls, data, where))


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object; two readers may take another one of two equal keys."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("an object has a key twice")
    return found


@cache
def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _read(kind: Any, data: Any, where: str) -> Any:
    origin = typing.get_origin(kind)
    if origin in (types.UnionType, typing.Union):
        return _read_union(kind, data, where)
    if origin is tuple:
        return _read_tuple(kind, data, where)
    if origin is dict:
        _require(isinstance(data, dict) and len(data) <= MAX_ITEMS, "an object", data, where)
        item = typing.get_args(kind)[1]
        return {
            _read(str, key, where): _read(item, value, f"{where}.{key[:80]}")
            for key, value in data.items()
        }
    if is_dataclass(kind):
        return _read_dataclass(typing.cast(type, kind), data, where)
    return _read_plain(kind, data, where)


def _read_union(kind: Any, data: Any, where: str) -> Any:
    """`X | None`, or a union of one dataclass and plain types."""
    options = typing.get_args(kind)
    if data is None and type(None) in options:
        return None
    for option in options:
        if is_dataclass(option) == isinstance(data, dict) and option is not type(None):
            return _read(option, data, where)
    raise _wrong(str(kind), data, where)


def _read_tuple(kind: Any, data: Any, where: str) -> Any:
    _require(isinstance(data, list) and len(data) <= MAX_ITEMS, "a list", data, where)
    item = typing.get_args(kind)[0]
    return tuple(_read(item, value, f"{where}[{i}]") for i, value in enumerate(data))


def _read_dataclass(cls: type, data: Any, where: str) -> Any:
    _require(isinstance(data, dict), "an object", data, where)
    known = {field.name: field for field in fields(cls)}
    unknown = sorted(set(data) - set(known))
    _require(not unknown, f"the keys {sorted(known)}", f"also {unknown[:5]}", where)
    needed = [
        f.name for f in known.values() if f.default is MISSING and f.default_factory is MISSING
    ]
    missing = [name for name in needed if name not in data]
    _require(not missing, f"the keys {missing}", "none of them", where)
    hints = _hints(cls)
    values = {name: _read(hints[name], data[name], f"{where}.{name}") for name in data}
    try:
        return cls(**values)
    except InputError as error:
        raise CorruptArtifactError(
            f"The artifact's {where} is not usable: {error.what}",
            expected=error.expected,
            got=error.got,
            fix=FIX,
        ) from error


def _read_plain(kind: Any, data: Any, where: str) -> Any:
    if kind is float:
        return _read_float(data, where)
    _require(type(data) is kind, kind.__name__, data, where)
    if kind is str:
        _require(not UNPRINTABLE.search(data), "printable text", data, where)
    elif kind is int:
        _require(abs(data) <= MAX_COUNT, "a count of 64 bits", data, where)
    return data


def _read_float(data: Any, where: str) -> float:
    """A number; null is infinity, which JSON lacks."""
    if data is None:
        return math.inf
    _require(type(data) in (int, float) and abs(data) <= MAX_FLOAT, "a number", data, where)
    return float(data)


def _require(holds: bool, expected: str, got: object, where: str) -> None:
    if not holds:
        raise _wrong(expected, got, where)


def _wrong(expected: str, got: object, where: str) -> CorruptArtifactError:
    return CorruptArtifactError(
        f"The artifact's {where} is not as its format says.",
        expected=expected,
        got=f"{type(got).__name__} {reprlib.repr(got)}",
        fix=FIX,
    )
