"""Frozen dataclasses to JSON and back, strictly: the type annotations are the schema."""

from __future__ import annotations

import math
import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from typing import Any, TypeVar

from sdk.errors import CorruptArtifactError

MAX_ITEMS = 100_000
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
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value


def from_json(cls: type[T], data: object, where: str = "manifest") -> T:
    """Build `cls` from parsed JSON; CorruptArtifactError names the first place that is wrong."""
    return typing.cast(T, _read(cls, data, where))


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
        return {key: _read(item, value, f"{where}.{key}") for key, value in data.items()}
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
    return cls(**{name: _read(hints[name], data[name], f"{where}.{name}") for name in data})


def _read_plain(kind: Any, data: Any, where: str) -> Any:
    if kind is float:
        _require(type(data) in (int, float, type(None)), "a number", data, where)
        return math.inf if data is None else float(data)
    _require(type(data) is kind, kind.__name__, data, where)
    return data


def _require(holds: bool, expected: str, got: object, where: str) -> None:
    if not holds:
        raise _wrong(expected, got, where)


def _wrong(expected: str, got: object, where: str) -> CorruptArtifactError:
    return CorruptArtifactError(
        f"The artifact's {where} is not as its format says.",
        expected=expected,
        got=f"{type(got).__name__} {str(got)[:80]!r}",
        fix="compile the artifact again, or copy it again from where it was made",
    )
