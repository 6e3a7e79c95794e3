"""Searches on the reference engine, which lowers in no time, with a clock that the tests set.

The search is the same for all engines.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from searches import FAST_INT8, Tune, search

import sdk
from sdk import pipeline
from sdk.search import run
from sdk.search.result import Search


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Make the builds' medians what the test says, in microseconds; others take 200."""

    def set_to(**medians: float) -> None:
        def sample(calls: dict[str, Any], **_: Any) -> dict[str, list[float]]:
            precisions = {name: name.partition(" #")[0].rpartition(":")[2] for name in calls}
            return {name: [medians.get(p, 200.0)] * 5 for name, p in precisions.items()}

        monkeypatch.setattr(pipeline, "sample", sample)

    set_to(**FAST_INT8)
    return set_to


@pytest.fixture(autouse=True, scope="module")
def no_profile() -> Iterator[None]:
    """The profiler's figures are those of the moment; so would be the mixtures made after them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "layer_times", lambda *_: {})
        yield


@pytest.fixture(scope="module")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache in which every candidate of the plain search is."""
    root = tmp_path_factory.mktemp("warm")
    found = search(root / "cache", root / "m.edge")
    assert (found.built, found.reused) == (len(found.candidates), 0)
    return root / "cache"


@pytest.fixture
def cache(warm: Path, tmp_path: Path) -> Path:
    return shutil.copytree(warm, tmp_path / "cache")


@pytest.fixture
def tune(cache: Path, tmp_path: Path) -> Tune:
    """Search with a warm cache; whatever fails must leave nothing but the cache behind."""

    def call(**options: Any) -> Search:
        try:
            return search(cache, tmp_path / "m.edge", **options)
        except (sdk.EdgeError, ZeroDivisionError, KeyboardInterrupt):
            assert {path.name for path in tmp_path.iterdir()} <= {"cache"}
            raise

    return call
