"""Memory that was watched lies on huge pages; nothing else changes."""

from __future__ import annotations

import itertools
import mmap
import random
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

from sdk.runtimes import huge_pages
from sdk.runtimes.huge_pages import SIZE, SWITCH, HugePages, is_on

BLOCKS = 8
only_where_on = pytest.mark.skipif(not is_on(), reason="this system has no huge pages to ask for")


@pytest.fixture
def pages() -> HugePages:
    return HugePages()


def mapped(filled: int) -> mmap.mmap:
    """Private memory of some blocks, of which the first `filled` bytes are in use."""
    made = mmap.mmap(-1, (BLOCKS + 1) * SIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    made.write(random.Random(0).randbytes(4096) * (filled // 4096))
    return made


def in_kilobytes(name: str) -> int:
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))


@only_where_on
def test_watched_memory_moves_and_keeps_its_content(pages: HugePages) -> None:
    before = in_kilobytes("AnonHugePages")
    with pages.watch():
        memory = mapped((BLOCKS + 1) * SIZE)
    content = memory[:]
    pages.collapse()
    pages.join()
    assert in_kilobytes("AnonHugePages") - before >= (BLOCKS - 1) * SIZE // 1024
    assert memory[:] == content


@only_where_on
def test_memory_that_is_not_in_use_is_not_taken(pages: HugePages) -> None:
    with pages.watch():
        memory = mapped(filled=SIZE // 2)
    before = in_kilobytes("Rss")
    pages.collapse()
    pages.join()
    assert in_kilobytes("Rss") - before < SIZE // 1024
    assert memory[SIZE:] == bytes(len(memory) - SIZE)


@only_where_on
def test_the_switch_and_the_system_can_say_no(
    pages: HugePages, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SWITCH, "0")
    assert not is_on()
    before = in_kilobytes("AnonHugePages")
    with pages.watch():
        memory = mapped((BLOCKS + 1) * SIZE)
    pages.collapse()
    pages.join()
    assert in_kilobytes("AnonHugePages") <= before
    assert memory[0:1]


def test_a_system_that_has_none_is_no_error(
    pages: HugePages, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    with pages.watch():
        pass
    pages.collapse()
    pages.join()


def numbers(ranges: Iterable[tuple[int, int]]) -> set[int]:
    return set(itertools.chain.from_iterable(range(*pair) for pair in ranges))


@pytest.mark.parametrize("seed", range(20))
def test_what_is_new_is_what_was_not_there(seed: int) -> None:
    rng = random.Random(seed)

    def some() -> list[tuple[int, int]]:
        places = sorted(rng.sample(range(40), 8))
        return list(zip(places[::2], places[1::2], strict=True))

    before, now = huge_pages._joined(some()), huge_pages._joined(some())
    assert numbers(huge_pages._new(before, now)) == numbers(now) - numbers(before)
