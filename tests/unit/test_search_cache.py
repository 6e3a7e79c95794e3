"""The cache of a search: whole entries or none, damage is told and mended, size is bounded."""

from __future__ import annotations

import json
import os
import threading
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import sdk
from sdk.search import cache as module
from sdk.search.cache import ENTRY, Cache, CacheWarning, default_root, key_of


@dataclass(frozen=True)
class Note:
    """A document."""

    text: str


KEYS = [key_of({"number": number}) for number in range(4)]


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


def put(cache: Cache, key: str, text: str = "hello", size: int = 1000) -> Path:
    cache.put(key, Note(text), {"files/model.onnx": b"x" * size})
    return cache.folder / key


def test_what_was_put_is_there(cache: Cache, tmp_path: Path) -> None:
    source = tmp_path / "model.onnx"
    source.write_bytes(b"network")
    cache.put(KEYS[0], Note("hello"), {"files/a/model.onnx": source, "golden": b"values"})
    assert cache.get(KEYS[0], Note, tmp_path / "out") == Note("hello")
    assert (tmp_path / "out/files/a/model.onnx").read_bytes() == b"network"
    assert (tmp_path / "out/golden").read_bytes() == b"values"
    assert cache.get(KEYS[1], Note, tmp_path / "none") is None


def test_a_key_depends_on_every_fact() -> None:
    facts = {"target": sdk.Target("torch"), "keep_float": ["a"], "method": "rtn"}
    changes = ({"target": sdk.Target("openvino")}, {"keep_float": ["b"]}, {"method": "hqq"})
    keys = {key_of(facts), *(key_of({**facts, **change}) for change in changes)}
    assert len(keys) == 4
    assert key_of(dict(reversed(facts.items()))) == key_of(facts)


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


@pytest.mark.parametrize("damage", ["file", "entry", "truncated", "missing", "other document"])
def test_a_damaged_entry_is_told_of_and_removed(damage: str, cache: Cache, tmp_path: Path) -> None:
    place = put(cache, KEYS[0])
    entry, file = place / ENTRY, place / "files/files/model.onnx"
    if damage == "file":
        flip(file)
    elif damage == "entry":
        entry.write_text(entry.read_text().replace("hello", "jello"))
    elif damage == "truncated":
        entry.write_bytes(entry.read_bytes()[:-20])
    elif damage == "missing":
        file.unlink()
    else:
        cache.put(KEYS[1], {"other": 1})
        entry.write_bytes((cache.folder / KEYS[1] / ENTRY).read_bytes())
    with pytest.warns(CacheWarning, match="damaged: it is made again"):
        assert cache.get(KEYS[0], Note, tmp_path / "out") is None
    assert not place.exists()
    assert not (tmp_path / "out").exists()
    put(cache, KEYS[0], "again")
    assert cache.get(KEYS[0], Note, tmp_path / "out") == Note("again")


def test_a_listed_path_that_leaves_the_entry_is_refused(cache: Cache, tmp_path: Path) -> None:
    place = put(cache, KEYS[0])
    entry = json.loads((place / ENTRY).read_text())
    del entry["sha256"]
    entry["files"] = {"../../secret": entry["files"]["files/model.onnx"]}
    (place / ENTRY).write_text(json.dumps({**entry, "sha256": module._hash_of(entry)}))
    with pytest.warns(CacheWarning, match="unsafe path"):
        assert cache.get(KEYS[0], Note, tmp_path / "out") is None


def test_those_not_used_for_longest_go_first(tmp_path: Path) -> None:
    cache = Cache(tmp_path, limit=25_000)
    for age, key in zip((30, 20, 10), KEYS[:3], strict=True):
        place = put(cache, key, size=9_000)
        os.utime(place, (time.time() - age, time.time() - age))
    assert [(cache.folder / key).exists() for key in KEYS[:3]] == [False, True, True]
    assert cache.get(KEYS[1], Note) is not None  # now the one used last
    put(cache, KEYS[3], size=9_000)
    assert [(cache.folder / key).exists() for key in KEYS] == [False, True, False, True]


def test_an_entry_larger_than_the_bound_stays_for_this_search(tmp_path: Path) -> None:
    cache = Cache(tmp_path, limit=100)
    put(cache, KEYS[0])
    assert cache.get(KEYS[0], Note) is not None


def test_only_its_own_folders_are_removed(tmp_path: Path) -> None:
    cache = Cache(tmp_path, limit=1)
    (tmp_path / "thesis.tex").write_text("precious")
    (cache.folder / "thesis").mkdir()
    put(cache, KEYS[0])
    put(cache, KEYS[1])
    assert (tmp_path / "thesis.tex").exists()
    assert (cache.folder / "thesis").exists()
    assert not (cache.folder / KEYS[0]).exists()


def test_what_a_killed_search_left_goes_after_a_day(cache: Cache) -> None:
    old, new = cache.folder / ".part-old", cache.folder / ".part-new"
    for part, age in ((old, 2 * module.ABANDONED), (new, 60)):
        part.mkdir()
        os.utime(part, (time.time() - age, time.time() - age))
    put(cache, KEYS[0])
    assert (old.exists(), new.exists()) == (False, True)


def test_an_interrupted_write_leaves_no_entry(
    cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(_path: Path) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "_digest", stop)
    with pytest.raises(KeyboardInterrupt):
        put(cache, KEYS[0])
    assert list(cache.folder.iterdir()) == []


def test_two_that_write_the_same_entry_never_mix(tmp_path: Path) -> None:
    caches = [Cache(tmp_path), Cache(tmp_path)]
    start = threading.Barrier(2)

    def write(number: int) -> None:
        start.wait()
        for key in KEYS:
            caches[number].put(key, Note(str(number)), {"a": str(number).encode()})

    threads = [threading.Thread(target=write, args=(number,)) for number in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index, key in enumerate(KEYS):
        found = caches[0].get(key, Note, tmp_path / f"out{index}")
        assert found is not None
        assert (tmp_path / f"out{index}/a").read_text() == found.text
    assert sorted(path.name for path in caches[0].folder.iterdir()) == sorted(KEYS)


def test_a_full_disk_is_told_of_and_goes_by(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "_write", full)
    with pytest.warns(CacheWarning, match="No space left"):
        put(cache, KEYS[0])
    assert list(cache.folder.iterdir()) == []


@pytest.fixture
def unusable(tmp_path: Path) -> Iterator[Path]:
    file = tmp_path / "file"
    file.write_text("")
    yield file
    assert file.read_text() == ""


def test_a_cache_that_is_a_file_is_refused(unusable: Path) -> None:
    with pytest.raises(sdk.InputError, match="is not usable") as caught:
        Cache(unusable)
    assert "--no-cache" in str(caught.value)


def test_a_cache_that_cannot_be_written_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**_: object) -> str:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(module.tempfile, "mkdtemp", refuse)
    with pytest.raises(sdk.InputError, match="is not usable"):
        Cache(tmp_path)


def test_the_default_place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_root() == tmp_path / "edge-sdk"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_root() == tmp_path / ".cache/edge-sdk"


def test_a_miss_says_nothing(cache: Cache) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert cache.get(KEYS[0], Note) is None
