"""Dataclasses to JSON and back: the annotations are the schema, and nothing else is let in."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, strategies as st

from sdk.errors import CorruptArtifactError
from sdk.signature import Dim, Signature, TensorSpec
from sdk.structure import MAX_ITEMS, from_json, parse, to_json


@dataclass(frozen=True)
class Inner:
    size: int
    weight: float = 1.0


@dataclass(frozen=True)
class Outer:
    name: str
    flag: bool
    inner: Inner
    items: tuple[Inner, ...] = ()
    table: dict[str, int] = field(default_factory=dict)
    dims: tuple[int | Dim, ...] = ()
    note: str | None = None


GOOD: dict[str, Any] = {"name": "a", "flag": True, "inner": {"size": 1}}
TEXT = st.text(st.characters(exclude_categories=("Cc", "Cs")))
COUNT = st.integers(-(2**63) + 1, 2**63 - 1)
# written with six digits, so drawn with six
NUMBER = st.floats(allow_nan=False, allow_infinity=False).map(lambda x: float(f"{x:.6g}"))
INNER = st.builds(Inner, COUNT, NUMBER.filter(math.isfinite))
DIM = st.builds(
    lambda low, more: Dim("n", low, low, low + more), st.integers(1, 9), st.integers(0, 9)
)
OUTER = st.builds(
    Outer,
    TEXT,
    st.booleans(),
    INNER,
    st.lists(INNER, max_size=3).map(tuple),
    st.dictionaries(TEXT, COUNT, max_size=3),
    st.lists(st.integers(0, 99) | DIM, max_size=3).map(tuple),
    st.none() | TEXT,
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
)


@given(OUTER)
def test_round_trip(value: Outer) -> None:
    text = json.dumps(to_json(value), ensure_ascii=False).encode()
    assert from_json(Outer, parse(text, "test")) == value


@given(JSON)
def test_any_json_is_read_or_refused(data: Any) -> None:
    for cls in (Outer, Signature, TensorSpec, Dim):
        with pytest.raises(CorruptArtifactError):
            from_json(cls, data)


@given(st.sampled_from(sorted(GOOD)), JSON)
def test_any_value_is_read_or_refused(key: str, data: Any) -> None:
    try:
        outer = from_json(Outer, GOOD | {key: data})
    except CorruptArtifactError:
        return
    assert type(outer.name) is str
    assert type(outer.flag) is bool
    assert type(outer.inner.size) is int


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({"name": 1}, "test.name"),
        ({"name": None}, "test.name"),
        ({"name": "\x1b[2J"}, "test.name"),
        ({"name": "\ud800"}, "test.name"),
        ({"flag": 1}, "test.flag"),
        ({"inner": []}, "test.inner"),
        ({"inner": {}}, "test.inner"),
        ({"inner": {"size": True}}, "test.inner.size"),
        ({"inner": {"size": 1.0}}, "test.inner.size"),
        ({"inner": {"size": 2**63}}, "test.inner.size"),
        ({"inner": {"size": 1, "weight": "1"}}, "test.inner.weight"),
        ({"inner": {"size": 1, "weight": 10**400}}, "test.inner.weight"),
        ({"inner": {"size": 1, "weight": math.inf}}, "test.inner.weight"),
        ({"inner": {"size": 1, "weight": math.nan}}, "test.inner.weight"),
        ({"inner": {"size": 1, "extra": 1}}, "test.inner"),
        ({"items": {}}, "test.items"),
        ({"items": [{"size": 1}, 3]}, r"test.items\[1\]"),
        ({"items": [0] * (MAX_ITEMS + 1)}, "test.items"),
        ({"table": {"a": "b"}}, "test.table.a"),
        ({"table": {"\ud800": 1}}, "test.table"),
        ({"dims": ["n"]}, r"test.dims\[0\]"),
        ({"dims": [{"name": "n", "min": 3, "max": 2}]}, r"test.dims\[0\]"),
        ({"extra": 1}, "test"),
    ],
)
def test_the_wrong_place_is_named(change: dict[str, Any], place: str) -> None:
    with pytest.raises(CorruptArtifactError, match=f"{place} is not"):
        from_json(Outer, GOOD | change, "test")


@pytest.mark.parametrize("missing", sorted(GOOD))
def test_missing_keys(missing: str) -> None:
    with pytest.raises(CorruptArtifactError, match="not as its format says"):
        from_json(Outer, {key: GOOD[key] for key in GOOD if key != missing})


def test_a_float_that_json_lacks_is_null() -> None:
    assert to_json(Inner(1, math.inf))["weight"] is None
    assert from_json(Inner, {"size": 1, "weight": None}).weight == math.inf


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"NaN",
        b'{"a": Infinity}',
        b'{"a": 1, "a": 2}',
        b'{"b": {"a": 1, "a": 1}}',
        b"\xff\xfe",
        b"\xef\xbb\xbf{}",
        '{"a": 1}'.encode("utf-16"),
        b"1" * 5000,
        b"[" * 100_000,
        b'{"a":' * 100_000,
    ],
    ids=lambda text: repr(text[:12]),
)
def test_no_json(text: bytes) -> None:
    with pytest.raises(CorruptArtifactError, match="is not JSON"):
        parse(text, "manifest")


@pytest.mark.parametrize("depth", range(100, 1000, 100))
def test_depth_is_refused_wherever_the_stack_ends(depth: int) -> None:
    with pytest.raises(CorruptArtifactError):
        from_json(Outer, parse(b"[" * depth + b"]" * depth, "test"))
    with pytest.raises(CorruptArtifactError):
        from_json(Outer, GOOD | {"name": parse(b"[" * depth + b"]" * depth, "test")})
