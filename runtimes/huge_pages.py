"""Puts what an engine loads on huge pages, where Linux has them.

A step of a language model reads all of its weights. On pages of 4 KiB each of them needs an entry
of the processor's table of addresses, which has some two thousand: a model of 50 MB takes twelve
thousand, and the loop's own data lose theirs each step. Engines do not ask for more; on pages of
2 MiB the same model takes twenty-five. Figures: docs/generate.md, `tests/bench/huge_pages.py`.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import functools
import os
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from sdk import environment

SWITCH = "EDGE_HUGE_PAGES"
"""Environment variable; 0 leaves memory as it is."""
MAPS, TABLE = Path("/proc/self/maps"), Path("/proc/self/pagemap")
SIZE = 2 << 20
PAGE, ENTRY = 4096, 8
"""Bytes of an ordinary page, and of its line in `pagemap`."""
OWN = 0x81
"""In the last byte of such a line: the page is in memory, and mapped nowhere else. The page of
zeros, which stands for all that was only read, is mapped elsewhere too.
"""
COLLAPSE = 25
"""`MADV_COLLAPSE`, since Linux 6.1: at once, where older advice waits for a background thread."""
TRIES = 3
"""Pages that were filled a moment ago may still be on their way into the system's lists."""
Range = tuple[int, int]


class HugePages:
    """Moves what the process mapped and filled while it was watched, in a thread of its own.

    Only whole blocks of 2 MiB are moved, all of whose pages were written and are the process's
    alone, so that it takes no more memory than before. Nothing happens, and nothing fails, where
    the system cannot move them (Linux before 6.1), where its administrator switched huge pages off
    (`never`), or where `EDGE_HUGE_PAGES` is 0.
    """

    def __init__(self, *, wanted: bool = True) -> None:
        self.on = wanted and is_on()
        """Whether anything will be moved."""
        self._found: list[Range] = []
        self._thread: threading.Thread | None = None

    @contextlib.contextmanager
    def watch(self) -> Iterator[None]:
        """What is mapped within the block is to be moved."""
        if not self.on:
            yield
            return
        before = _mapped()
        yield
        self._found += _new(before, _mapped())

    def collapse(self) -> None:
        """Begin to move it. The memory stays in use meanwhile; what comes later is not moved."""
        found, self._found = _joined(self._found), []
        if found:
            thread = threading.Thread(target=_collapse, args=(found,), daemon=True)
            with contextlib.suppress(RuntimeError):  # there may be no room for another thread
                thread.start()
                self._thread = thread

    def join(self) -> None:
        """Wait until all is moved: some 400 MB a second."""
        if self._thread is not None:
            self._thread.join()


def is_on() -> bool:
    """Whether this process can have its memory moved, and wants it."""
    if sys.platform != "linux" or os.environ.get(SWITCH) == "0":
        return False
    allowed = environment.huge_pages() not in ("", "never")
    readable = os.access(TABLE, os.R_OK) and os.access(MAPS, os.R_OK)
    return allowed and readable and os.sysconf("SC_PAGE_SIZE") == PAGE and _collapse_at(0, 0)


def _mapped() -> list[Range]:
    """Private writable memory that no file backs."""
    found = []
    for line in MAPS.read_text().splitlines():
        place, rights, _, _, inode = line.split(maxsplit=5)[:5]
        if inode == "0" and rights.startswith("rw") and rights.endswith("p"):
            start, end = place.split("-")
            found.append((int(start, 16), int(end, 16)))
    return _joined(found)


def _joined(ranges: list[Range]) -> list[Range]:
    """In the order of their addresses, neighbours as one."""
    found: list[Range] = []
    for start, end in sorted(ranges):
        if found and found[-1][1] == start:
            found[-1] = found[-1][0], end
        else:
            found.append((start, end))
    return found


def _new(before: list[Range], now: list[Range]) -> Iterator[Range]:
    """What of `now` is not in `before`."""
    for start, end in now:
        for old_start, old_end in before:
            if old_end <= start or old_start >= end:
                continue
            if start < old_start:
                yield start, old_start
            start = old_end
        if start < end:
            yield start, end


def _full_blocks(ranges: list[Range]) -> Iterator[int]:
    """Starts of the aligned blocks that are in memory with all their pages."""
    with TABLE.open("rb", buffering=0) as table:
        for start, end in ranges:
            for block in range(-(-start // SIZE) * SIZE, end - SIZE + 1, SIZE):
                table.seek(block // PAGE * ENTRY)
                lines = table.read(SIZE // PAGE * ENTRY)
                if all(flags & OWN == OWN for flags in lines[ENTRY - 1 :: ENTRY]):
                    yield block


def _collapse(ranges: list[Range]) -> None:
    """Block by block. Where the system has no huge page to give, a block stays as it is; so does
    one that was given back in the meantime.
    """
    with contextlib.suppress(OSError):
        for start in _full_blocks(ranges):
            for _ in range(TRIES):
                if _collapse_at(start, SIZE) or ctypes.get_errno() != errno.EAGAIN:
                    break


def _collapse_at(start: int, size: int) -> bool:
    """Whether the system did it; of no bytes at all, whether it could."""
    return bool(_madvise()(start, size, COLLAPSE) == 0)


@functools.cache
def _madvise() -> Callable[[int, int, int], int]:
    """The C library's function, which not every system has."""
    function = ctypes.CDLL(None, use_errno=True).madvise
    function.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
    return function
