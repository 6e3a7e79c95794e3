"""Mutated artifacts, opened, loaded and run: only the SDK's errors come out, soon, and nothing
outside of the folder is touched.

Half of the mutations are blind; the others come from someone who computes the hashes anew, so that
the engine file, the processor, the sources and the golden values themselves are hostile.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from handmade import write_artifact
from hypothesis import HealthCheck, given, settings, strategies as st
from mutations import Change, byte_edits, json_edits

import sdk
from sdk.artifact import MANIFEST, Artifact
from sdk.attribution import read_sources
from sdk.errors import ArtifactError, EdgeError
from sdk.manifest import FileEntry, Manifest
from sdk.structure import from_json

FILES = ("model.onnx", "golden.safetensors", "processor.json", "sources.json", MANIFEST)
X = np.ones((1, 3, 4, 4), np.float32)
PICTURE = np.zeros((5, 7, 3), np.uint8)
fuzz = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow], database=None
)

opened: list[str] | None = None


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    """An audit hook, which stays for good: notes what Python opens, lists, changes or runs."""
    if opened is None or event not in ("open", "os.listdir", "os.scandir", "os.remove", "os.rename",
                                       "os.mkdir", "subprocess.Popen", "os.system",
                                       "pickle.find_class", "socket.connect"):  # fmt: skip
        return
    opened.append(f"{event} {arguments[0]}")


sys.addaudithook(_watch)


@contextmanager
def nothing_outside(folder: Path) -> Iterator[None]:
    """Fail where Python touched a file outside of `folder`, loaded code or ran a program."""
    global opened
    opened = []
    try:
        yield
    finally:
        events, opened = opened, None
        # besides the artifact, modules that Python or the SDK import when they are first needed
        readable = (folder, sys.prefix, sys.base_prefix)
        allowed = tuple(
            f"{e} {path}" for e in ("open", "os.scandir", "os.listdir") for path in readable
        )
        assert [event for event in events if not event.startswith(allowed)] == []


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One good artifact, loaded once so that all of the engine's own files are open."""
    path = write_artifact(tmp_path_factory.mktemp("fuzz") / "model.edge").path
    use(path, tolerate=())
    return path


def use(path: Path, tolerate: tuple[type[EdgeError], ...] = (EdgeError,)) -> None:
    """All that a device does with an artifact, each part whether or not another one fails."""
    artifact = Artifact.open(path)
    for part in (artifact.golden, lambda: read_sources(artifact)):
        with suppress(*tolerate):
            part()
    with suppress(*tolerate), sdk.load(artifact, fallback="forbid", threads=1) as model:
        for value in (X, PICTURE):
            with suppress(*tolerate):
                model.predict(value)


def check(original: Path, mutate: Change, expected: type[EdgeError], *, sealed: bool) -> None:
    """Mutate a copy, use it; only `expected` may come out, within a second."""
    path = original.with_name("mutant.edge")
    shutil.rmtree(path, ignore_errors=True)
    shutil.copytree(original, path)
    mutate(path)
    if sealed:
        seal(path)
    start = time.process_time(), time.perf_counter()
    with nothing_outside(path), suppress(expected):
        use(path) if sealed else Artifact.open(path)
    assert time.process_time() - start[0] < 1
    assert time.perf_counter() - start[1] < 10  # waiting, on a busy machine


def seal(path: Path) -> None:
    """What an attacker does: list the files with their true sizes and hashes."""
    with suppress(ArtifactError, ValueError, OSError):
        manifest = from_json(Manifest, json.loads((path / MANIFEST).read_text()))
        entries = {name: entry(path / name) for name in manifest.files if (path / name).is_file()}
        sealed = replace(manifest, files={**manifest.files, **entries}).sealed()
        (path / MANIFEST).write_bytes(sealed.dumps())


def entry(file: Path) -> FileEntry:
    return FileEntry(file.stat().st_size, hashlib.sha256(file.read_bytes()).hexdigest())


@st.composite
def file_edits(draw: st.DrawFn) -> Change:
    """Add, remove, rename, swap or link files."""
    kind = draw(st.sampled_from(["add", "remove", "rename", "swap", "link", "pipe", "folder"]))
    first, second = draw(st.tuples(st.sampled_from(FILES), st.sampled_from(FILES)))
    new = draw(
        st.sampled_from(["x", ".x", "x.so", "model.onnx.data", "a/b/c", "\udcff", "x" * 200])
    )

    def change(path: Path) -> None:
        target = path / new
        target.parent.mkdir(parents=True, exist_ok=True)
        if kind == "add":
            target.write_bytes(b"x")
        elif kind == "folder":
            target.mkdir()
        elif kind == "pipe":
            (path / first).unlink()
            os.mkfifo(path / first)
        elif kind == "swap":
            content = (path / first).read_bytes()
            (path / first).write_bytes((path / second).read_bytes())
            (path / second).write_bytes(content)
        elif kind == "rename":
            (path / first).rename(target)
        else:
            (path / first).unlink()
            if kind == "link":
                (path / first).symlink_to("/etc/hostname")

    return change


@fuzz
@given(mutate=byte_edits(FILES) | json_edits(MANIFEST) | file_edits())
def test_a_damaged_artifact(original: Path, mutate: Change) -> None:
    check(original, mutate, ArtifactError, sealed=False)


HOSTILE = {
    "manifest": json_edits(MANIFEST),
    "model": byte_edits(("model.onnx",)),
    "golden": byte_edits(("golden.safetensors",)),
    "processor": json_edits("processor.json") | byte_edits(("processor.json",)),
    "sources": json_edits("sources.json") | byte_edits(("sources.json",)),
}


@pytest.mark.parametrize("file", HOSTILE)
def test_a_hostile_file(original: Path, file: str) -> None:
    @settings(fuzz, max_examples=60)
    @given(mutate=HOSTILE[file])
    def run(mutate: Change) -> None:
        check(original, mutate, EdgeError, sealed=True)

    run()


def test_the_watch_sees_what_is_outside(tmp_path: Path) -> None:
    (tmp_path / "inside").mkdir()
    (tmp_path / "outside").touch()
    with nothing_outside(tmp_path / "inside"):
        list((tmp_path / "inside").iterdir())
    with pytest.raises(AssertionError, match="outside"), nothing_outside(tmp_path / "inside"):
        (tmp_path / "outside").read_bytes()
