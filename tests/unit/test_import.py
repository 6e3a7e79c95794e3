"""`import sdk` is light, and its list of names is true."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import sdk

HEAVY = (
    "torch",
    "onnx",
    "onnxruntime",
    "openvino",
    "tensorrt_rtx",
    "cuda",
    "PIL",
    "rich",
    "typer",
    "matplotlib",
    "sklearn",
)
SECONDS = """
import time
start = time.perf_counter()
import sdk
print(time.perf_counter() - start)
"""
LOADED = """
import sys
import sdk
{then}
print(*sorted({heavy}.intersection(sys.modules)))
"""
DEVICE = "from sdk.runtimes import onnxruntime, openvino, session, tensorrt, torch"


def _run(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    return done.stdout.strip()


def test_import_takes_less_than_a_quarter_of_a_second() -> None:
    assert min(float(_run(SECONDS)) for _ in range(5)) < 0.25


@pytest.mark.parametrize(
    "then",
    ["", "[getattr(sdk, name) for name in sdk.__all__]", DEVICE],
    ids=["import", "all names", "runtimes"],
)
def test_import_loads_no_engine(then: str) -> None:
    assert _run(LOADED.format(then=then, heavy=set(HEAVY))) == ""


def test_every_public_name_resolves() -> None:
    assert [name for name in sdk.__all__ if getattr(sdk, name).__name__ != name] == []


def test_type_checkers_see_the_public_names() -> None:
    tree = ast.parse(Path(sdk.__file__).read_text())
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    seen = {
        (node.module, alias.asname)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert seen == {(module, name) for module, names in sdk._HOME.items() for name in names}


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        sdk.nonsense  # noqa: B018
