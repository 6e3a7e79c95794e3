"""What a search has built, kept for the next one: entries named by a hash of all they depend on.

An entry is a folder with `entry.json`, which lists the hash of every file and of itself. It is
written beside its place and renamed, so that it is there whole or not at all; of two searches that
write the same one, the first wins. A damaged entry is told of, removed and built again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import tempfile
import time
import warnings
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from sdk.artifact import SAFE_NAME
from sdk.errors import CorruptArtifactError, InputError
from sdk.structure import from_json, parse, to_json

FORMAT = 1
LIMIT = 4 << 30  # bytes
ENTRY, FILES = "entry.json", "files"
NAME = re.compile(r"[0-9a-f]{64}")
PART = ".part-"  # a folder that is being written, or removed
ABANDONED = 24 * 3600.0  # seconds until such a folder counts as left behind
NONE: Mapping[str, Path | bytes] = {}
T = TypeVar("T")


class CacheWarning(UserWarning):
    """An entry of the cache was damaged, or could not be written."""


def default_root() -> Path:
    """`$XDG_CACHE_HOME/edge-sdk`, or `~/.cache/edge-sdk`."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "edge-sdk"


def key_of(facts: Mapping[str, Any]) -> str:
    """The name of the entry that depends on `facts`: SHA-256 (hex) of their JSON."""
    text = json.dumps({"format": FORMAT, **to_json(facts)}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


class Cache:
    """Entries below `root`, at most `limit` bytes of them: those not used for longest go first."""

    def __init__(self, root: Path, limit: int = LIMIT) -> None:
        self.root, self.limit = root, limit
        self.folder = root / "builds"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            Path(tempfile.mkdtemp(prefix=PART, dir=self.folder)).rmdir()
        except OSError as error:
            raise InputError(
                f"The cache {root} is not usable.",
                expected="a folder that can be written",
                got=str(error),
                fix="choose another folder (--cache DIR), or none (--no-cache)",
            ) from error

    def get(self, key: str, kind: type[T], into: Path | None = None) -> T | None:
        """The entry's document, its files copied to `into`; None where there is no sound one."""
        place = self.folder / key
        try:
            document = self._read(place, kind, into)
            os.utime(place)
        except (CorruptArtifactError, OSError) as error:
            if into is not None:
                shutil.rmtree(into, ignore_errors=True)
            if place.exists():
                self._remove(place)
                what = f"The entry {key[:12]} of the cache {self.root} is damaged: it is made again"
                warnings.warn(f"{what} ({_first_line(error)}).", CacheWarning, stacklevel=2)
            return None
        return document

    def put(self, key: str, document: object, files: Mapping[str, Path | bytes] = NONE) -> None:
        """Add an entry with `files` by relative name; a full disk is only told of."""
        try:
            part = Path(tempfile.mkdtemp(prefix=PART, dir=self.folder))
            try:
                _write(part, document, files)
                _rename_unless_there(part, self.folder / key)
            finally:
                shutil.rmtree(part, ignore_errors=True)
            self._prune(key)
        except OSError as error:
            warnings.warn(f"The cache {self.root}: {error}.", CacheWarning, stacklevel=2)

    def _read(self, place: Path, kind: type[T], into: Path | None) -> T:
        entry = parse((place / ENTRY).read_bytes(), "cache entry")
        if not isinstance(entry, dict) or entry.pop("sha256", None) != _hash_of(entry):
            raise CorruptArtifactError(f"{ENTRY} was changed")
        for name, sha256 in entry["files"].items() if into is not None else ():
            assert into is not None
            _copy(place / FILES, name, into, sha256)
        return from_json(kind, entry["document"], "cache entry")

    def _prune(self, newest: str) -> None:
        """Remove the entries used longest ago until the rest fits; and what was left behind."""
        now, entries = time.time(), []
        for place in self.folder.iterdir():
            with contextlib.suppress(FileNotFoundError):  # another search removes, too
                used = place.stat().st_mtime
                if NAME.fullmatch(place.name):
                    entries.append((used, place, _size(place)))
                elif place.name.startswith(PART) and now - used > ABANDONED:
                    shutil.rmtree(place, ignore_errors=True)
        total = sum(size for _, _, size in entries)
        for _, place, size in sorted(entries):
            if total <= self.limit:
                break
            if place.name != newest:
                self._remove(place)
                total -= size

    def _remove(self, place: Path) -> None:
        """Out of the way first: nobody sees half an entry."""
        part = Path(tempfile.mkdtemp(prefix=PART, dir=self.folder))
        with contextlib.suppress(OSError):  # another search was faster
            place.rename(part / place.name)
        shutil.rmtree(part, ignore_errors=True)


def _write(part: Path, document: object, files: Mapping[str, Path | bytes]) -> None:
    hashes = {}
    for name, source in files.items():
        path = part / FILES / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(source, Path):
            shutil.copyfile(source, path)
        else:
            path.write_bytes(source)
        hashes[name] = _digest(path)
    entry = {"document": to_json(document), "files": hashes}
    (part / ENTRY).write_text(json.dumps({**entry, "sha256": _hash_of(entry)}))


def _rename_unless_there(part: Path, place: Path) -> None:
    try:
        part.rename(place)
    except OSError:
        if not place.is_dir():
            raise


def _copy(root: Path, name: str, into: Path, sha256: str) -> None:
    parts = PurePosixPath(name).parts
    if not all(SAFE_NAME.fullmatch(part) for part in parts) or "/".join(parts) != name:
        raise CorruptArtifactError(f"{ENTRY} lists the unsafe path {name[:80]!r}")
    (into / name).parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(root / name, into / name)
    if _digest(into / name) != sha256:
        raise CorruptArtifactError(f"the file {name!r} was changed")


def _hash_of(entry: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(entry, sort_keys=True).encode()).hexdigest()


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _size(place: Path) -> int:
    return sum(path.stat().st_size for path in place.rglob("*") if path.is_file())


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0].rstrip(".")
