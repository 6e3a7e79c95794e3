"""Memory that was watched lies on huge pages; nothing else changes."""

from __future__ import annotations

import itertools
import mmap
import random
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

from sdk import environment
from sdk.runtimes import huge_pages
from sdk.runtimes.huge_pages import SIZE, SWITCH, HugePages, is_on

BLOCKS = 8
only_where_on = pytest.mark.skipif(
    not is_on() or environment.huge_pages() == "always",
    reason="this system has no huge pages to ask for, or gives them unasked",
)


@pytest.fixture
def pages() -> HugePages:
    return HugePages()


def mapped() -> mmap.mmap:
    """Private memory of some blocks, nowhere in use yet."""
    return mmap.mmap(-1, (BLOCKS + 1) * SIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)


def written() -> mmap.mmap:
    """The same in use."""
    made = mapped()
    made.write(random.Random(0).randbytes(4096) * (len(made) // 4096))
    return made


def in_kilobytes(name: str) -> int:
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))


@only_where_on
def test_watched_memory_moves_and_keeps_its_content(pages: HugePages) -> None:
    before = in_kilobytes("AnonHugePages")
    with pages.watch():
        memory = written()
    content = memory[:]
    pages.collapse()
    pages.join()
    assert in_kilobytes("AnonHugePages") - before >= (BLOCKS - 1) * SIZE // 1024
    assert memory[:] == content


@only_where_on
@pytest.mark.parametrize("read", [False, True])
def test_memory_that_was_not_written_is_not_taken(pages: HugePages, *, read: bool) -> None:
    """Nor such as was only read, all of which is one page of zeros."""
    with pages.watch():
        memory = mapped()
    memory.write(b"x" * (SIZE // 2))
    if read:
        assert memory[SIZE:] == bytes(len(memory) - SIZE)
    before = in_kilobytes("Rss")
    pages.collapse()
    pages.join()
    assert in_kilobytes("Rss") - before < SIZE // 1024
    assert memory[SIZE:] == bytes(len(memory) - SIZE)


@only_where_on
@pytest.mark.parametrize("who", ["user", "administrator"])
def test_both_can_say_no(who: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if who == "user":
        monkeypatch.setenv(SWITCH, "0")
    else:
        (tmp_path / "enabled").write_text("always madvise [never]\n")
        monkeypatch.setattr(environment, "HUGE_PAGES", str(tmp_path / "enabled"))
    assert not is_on()
    pages = HugePages()
    before = in_kilobytes("AnonHugePages")
    with pages.watch():
        memory = written()
    pages.collapse()
    pages.join()
    assert in_kilobytes("AnonHugePages") <= before
    assert memory[0:1]


@pytest.mark.parametrize("lacking", ["linux", "the setting", "the table"])
def test_a_system_that_has_none_is_no_error(
    lacking: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if lacking == "linux":
        monkeypatch.setattr(sys, "platform", "darwin")
    elif lacking == "the setting":
        monkeypatch.setattr(environment, "HUGE_PAGES", str(tmp_path / "missing"))
    else:
        monkeypatch.setattr(huge_pages, "TABLE", tmp_path / "missing")
    assert not is_on()
    pages = HugePages()
    with pages.watch():
        memory = mapped()
    pages.collapse()
    pages.join()
    assert len(memory) == (BLOCKS + 1) * SIZE


@only_where_on
def test_a_table_that_cannot_be_read_later_is_no_error(
    pages: HugePages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pages.watch():
        memory = written()
    monkeypatch.setattr(huge_pages, "TABLE", tmp_path / "missing")
    pages.collapse()
    pages.join()
    assert memory[0:1]


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
