"""The rows of the parity tests, and fuzzed calls, under the address and undefined sanitizers.

Each runs in a process of its own that starts with the sanitizer's library, since Python has none.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from kernel_rows import EXAMPLES, ROWS, Row, native_with

from sdk.kernels.building import HERE, built
from sdk.kernels.cmake import compiler, missing_tools

pytestmark = pytest.mark.slow

TESTS = Path(__file__).parents[1]
SANITIZE = "address,undefined"


@cache
def environment() -> dict[str, str]:
    """With the compiler's own sanitizer first in the process; skips where it has none."""
    if missing_tools():
        pytest.skip(f"no {' and no '.join(missing_tools())}")
    names = ("libasan.so", "libubsan.so")
    found = [_file_of(name) for name in names]
    if None in found:
        pytest.skip("the compiler brings no sanitizers")
    built(extra=[EXAMPLES], sanitize=SANITIZE)  # here: the compiler itself needs no sanitizer
    return {
        **os.environ,
        "EDGE_TEST_SANITIZE": SANITIZE,
        "LD_PRELOAD": " ".join(filter(None, found)),
        "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "PYTHONPATH": str(TESTS),
        "OMP_NUM_THREADS": "1",
    }


def _file_of(name: str) -> str | None:
    asked = subprocess.run(
        [str(compiler()), f"-print-file-name={name}"], capture_output=True, text=True, check=True
    )
    path = Path(asked.stdout.strip())
    return str(path.resolve()) if path.is_absolute() and path.exists() else None


def run(*command: str) -> str:
    """What the command said, in which no sanitizer found anything."""
    done = subprocess.run(
        [sys.executable, *command],
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=3000,
    )
    said = done.stdout + done.stderr
    assert done.returncode == 0, said[-6000:]
    assert "ERROR: AddressSanitizer" not in said
    assert "runtime error" not in said
    return said


BROKEN = """
import sys, pathlib, numpy, sdk
from sdk.kernels.library import Library
library = Library(pathlib.Path(sys.argv[1]))
x = numpy.ones(64, numpy.float32)
library.call("scale_add", [x, x], [1.0])
"""


def test_sanitizers_see_what_goes_past_the_end(tmp_path: Path) -> None:
    root = tmp_path / "kernels"
    for name in ("native", "bindings"):
        shutil.copytree(HERE / name, root / name)
    shutil.copy(HERE / "CMakeLists.txt", root)
    shutil.copytree(EXAMPLES / "scale_add", root / "scale_add")
    source = root / "scale_add" / "cpu.cc"
    text = source.read_text()
    assert "i < count" in text
    source.write_text(text.replace("i < count", "i <= count"))
    library = built(root=root, folder=tmp_path, sanitize=SANITIZE)
    done = subprocess.run(
        [sys.executable, "-c", BROKEN, str(library)],
        env={**environment(), "EDGE_ISA": "portable"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert "heap-buffer-overflow" in done.stderr


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_parity_rows_under_sanitizers(row: Row) -> None:
    parity = str(TESTS / "kernels" / "test_native_parity.py")
    said = run("-m", "pytest", "-q", "-p", "no:cacheprovider", parity, "-k", f"{row.name}-")
    # once for each instruction set: a row that is skipped shows nothing
    assert f"{len(native_with(row.name).isas)} passed" in said


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_fuzzed_calls_under_sanitizers(row: Row) -> None:
    native_with(row.name)
    said = run(str(TESTS / "kernel_fuzz.py"), "--rounds", "1000", row.name)
    counts = re.search(rf"^{row.name}: (\d+) answered, (\d+) refused$", said, re.MULTILINE)
    assert counts is not None
    answered, refused = map(int, counts.groups())
    assert answered > 0
    assert refused > 0
