"""Ways to damage the files of a folder, for Hypothesis to draw from."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

Change = Callable[[Path], None]


@st.composite
def byte_edits(draw: st.DrawFn, names: tuple[str, ...]) -> Change:
    """Flip, insert, delete or repeat bytes of one file, or cut it off."""
    name = draw(st.sampled_from(names))
    edits = draw(
        st.lists(
            st.tuples(
                st.sampled_from(["flip", "insert", "delete", "cut", "repeat"]),
                st.floats(0, 1, exclude_max=True),
                st.binary(min_size=1, max_size=16),
            ),
            min_size=1,
            max_size=4,
        )
    )

    def change(path: Path) -> None:
        data = bytearray((path / name).read_bytes())
        for kind, place, extra in edits:
            _edit(data, kind, int(place * len(data)), extra)
        (path / name).write_bytes(data)

    return change


def _edit(data: bytearray, kind: str, at: int, extra: bytes) -> None:
    if kind == "flip" and data:
        data[at] ^= extra[0] or 1
    elif kind == "insert":
        data[at:at] = extra
    elif kind == "delete":
        del data[at : at + len(extra)]
    elif kind == "cut":
        del data[at:]
    else:
        data[at:at] = data[at : at + 64] * 3


ODD = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([0, -1, 2**31, 2**63, 10**400, 1e308, float("inf"), float("nan")])
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["../x", "/etc/passwd", "model.onnx", "x" * 300, "\x00", "\ud800", "\x1b[2J",
                       "torch:cpu:fp32", "openvino", "tensorrt:gpu:fp16", "float64", "bool"])
    | st.recursive(st.just([]), lambda inner: st.lists(inner, max_size=2), max_leaves=20)
    | st.dictionaries(st.text(max_size=3), st.integers(), max_size=3)
    | st.builds(lambda depth: json.loads("[" * depth + "]" * depth), st.integers(1, 300))
)  # fmt: skip


@st.composite
def json_edits(draw: st.DrawFn, name: str) -> Change:
    """Replace, remove, rename, add or repeat values anywhere in a JSON file."""
    edits = draw(
        st.lists(
            st.tuples(
                st.integers(0, 10**6),
                st.sampled_from(["replace", "remove", "rename", "add", "repeat"]),
                ODD,
            ),
            min_size=1,
            max_size=3,
        )
    )

    def change(path: Path) -> None:
        document = {"root": json.loads((path / name).read_text())}
        for pick, kind, value in edits:
            places = list(_places(document))
            _restructure(*places[pick % len(places)], kind, value)
        (path / name).write_text(json.dumps(document.get("root"), ensure_ascii=True))

    return change


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """All (container, key) pairs within a JSON value."""
    keys = list(value) if isinstance(value, dict) else range(len(value))
    for key in keys:
        yield value, key
        if isinstance(value[key], (dict, list)):
            yield from _places(value[key])


def _restructure(container: Any, key: Any, kind: str, value: Any) -> None:
    value = copy.deepcopy(value)
    if kind == "remove" and "root" not in container:
        del container[key]
    elif kind == "rename" and isinstance(container, dict) and key != "root":
        container[str(value)[:300]] = container.pop(key)
    elif kind == "add" and isinstance(container[key], dict):
        container[key][str(value)[:300]] = value
    elif kind == "repeat" and isinstance(container[key], list):
        container[key] = container[key] * 2
    else:
        container[key] = value
