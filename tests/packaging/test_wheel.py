"""The wheel holds the package `sdk` and nothing else."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

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
        if file.suffix in (".h", ".cc", ".cu", ".txt")
    }


def test_wheel_holds_exactly_the_rooms(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    folder = "-".join(wheel.name.split("-")[:2]) + ".dist-info"
    expected = _modules() | _native() | DATA | {f"{folder}/{name}" for name in METADATA}
    assert sorted(names) == sorted(expected)


def test_every_room_is_counted() -> None:
    modules = _modules()
    assert all(f"{place}/__init__.py" in modules for place in ROOMS.values())


def test_wheel_runs_on_every_python_3(wheel: Path) -> None:
    assert wheel.name.endswith("-py3-none-any.whl")
