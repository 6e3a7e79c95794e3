"""Exercises in editing: some lines of code, then the same lines with one name changed.

A model that has seen them copies from its context, which is what most of an edit is. They are made
from the texts at hand; nothing in them comes from a model.
"""

from __future__ import annotations

import keyword
import re
from collections import Counter
from random import Random

HEADER = "# The same code, with {old} renamed to {new}:\n"
NAME = re.compile(r"\b[A-Za-z_][A-Za-z0-9_]{2,}\b")
LINES = (4, 40)
ROOM = 4000  # characters that may follow the copy


def exercise(text: str, random: Random) -> str | None:
    """Some lines of `text`, the header, the lines with one name changed, and what follows them."""
    lines = text.splitlines(keepends=True)
    if len(lines) < 2 * LINES[0]:
        return None
    count = min(random.randint(*LINES), len(lines) // 2)
    start = random.randrange(len(lines) - count)
    shown, rest = "".join(lines[start : start + count]), "".join(lines[start + count :])[:ROOM]
    named = renaming(shown, random)
    if named is None:
        return None
    old, new = named
    if not shown.endswith("\n"):
        shown += "\n"
    return shown + HEADER.format(old=old, new=new) + renamed(shown + rest, old, new)


def renaming(text: str, random: Random) -> tuple[str, str] | None:
    """A name of `text`, the more often the likelier, and another for it; None without names."""
    counts = Counter(name for name in NAME.findall(text) if not keyword.iskeyword(name))
    if not counts:
        return None
    names = sorted(counts)
    old, other = random.choices(names, [counts[name] for name in names], k=2)
    new = other if other != old else "value"
    return old, random.choice((f"new_{old}", f"{old}_{new}", f"{new}_{old}", f"{old}2"))


def renamed(text: str, old: str, new: str) -> str:
    """`text` with the whole word `old` replaced by `new`."""
    return re.sub(rf"\b{re.escape(old)}\b", new, text)
