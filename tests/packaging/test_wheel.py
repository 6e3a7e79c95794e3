"""The wheel holds the package `sdk` and nothing else."""

from __future__ import annotations

import sysconfig
import zipfile
from pathlib import Path

import pytest

from sdk.kernels.cmake import missing_tools

pytestmark = pytest.mark.packaging

ROOT = Path(__file__).parents[2]
ROOMS = {
    "sdk": "sdk",
    "compilers": "sdk/compilers",
    "runtimes": "sdk/runtimes",
    "kernels": "sdk/kernels",
    "recipes": "sdk/recipes",
    "apps": "sdk/apps",
}
LIBRARY = "sdk/kernels/libedge_kernels.so"
DATA = {
    "sdk/base.html.j2",
    "sdk/manifest.schema.json",
    "sdk/py.typed",
    "sdk/report.html.j2",
    "sdk/search/search.html.j2",
}
METADATA = {"METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE"}


def _modules() -> set[str]:
    """Where every .py file of the rooms goes."""
    return {
        f"{place}/{file.relative_to(ROOT / room).as_posix()}"
        for room, place in ROOMS.items()
        for file in (ROOT / room).rglob("*.py")
    }


def _native() -> set[str]:
    """Where the native sources of the kernels go."""
    files = (ROOT / "kernels").rglob("*")
    return {
        f"sdk/kernels/{file.relative_to(ROOT / 'kernels').as_posix()}"
        for file in files
        if file.suffix in (".h", ".cc", ".cu", ".cuh", ".txt")
    }


def _shipped() -> set[str]:
    """Where the language models that come with the package go."""
    room = ROOT / "recipes"
    return {
        f"sdk/recipes/{file.relative_to(room).as_posix()}"
        for file in (room / "shipped").rglob("*")
        if file.suffix in (".json", ".jsonl", ".md", ".safetensors")
    }


def test_wheel_holds_exactly_the_rooms(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    folder = "-".join(wheel.name.split("-")[:2]) + ".dist-info"
    expected = (
        _modules() | _native() | _shipped() | DATA | {f"{folder}/{name}" for name in METADATA}
    )
    library = set() if missing_tools() else {LIBRARY}
    assert sorted(names) == sorted(expected | library)


def test_every_room_is_counted() -> None:
    modules = _modules()
    assert all(f"{place}/__init__.py" in modules for place in ROOMS.values())


def test_wheel_runs_on_every_python_3(wheel: Path) -> None:
    """With the native kernels on this platform only."""
    platform = "any" if missing_tools() else sysconfig.get_platform().replace("-", "_")
    assert wheel.name.endswith(f"-py3-none-{platform}.whl")


def test_wheel_is_made_without_a_compiler(pure_wheel: Path) -> None:
    assert pure_wheel.name.endswith("-py3-none-any.whl")
    with zipfile.ZipFile(pure_wheel) as archive:
        names = set(archive.namelist())
    assert LIBRARY not in names
    assert {"sdk/kernels/CMakeLists.txt", "sdk/kernels/native/edge.h"} <= names
