"""The artifact: a folder `name.edge/` with a manifest, engine files and golden values.

Safe to open: nothing is unpickled or executed, every file is listed with its size and SHA-256, no
path leaves the folder, no link is followed, and all that is read is bounded. Written to a hidden
folder beside its place and renamed, so that it is there whole or not at all.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import cast

from sdk.errors import ArtifactError, CorruptArtifactError, InputError
from sdk.extras import require
from sdk.manifest import MAX_BYTES, FileEntry, Manifest, loads
from sdk.signature import Array

MANIFEST, GOLDEN, PROCESSOR, SOURCES = (
    "manifest.json",
    "golden.safetensors",
    "processor.json",
    "sources.json",
)
SAFE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
MAX_FILES, MAX_DEPTH = 1000, 8
FIX = "compile the artifact again, or copy it again from where it was made"


@dataclass(frozen=True, slots=True)
class Artifact:
    """An opened artifact whose files are those of its manifest."""

    path: Path
    manifest: Manifest

    @classmethod
    def open(cls, path: str | Path) -> Artifact:
        """Open and verify; ArtifactError says what is wrong. Nothing outside `path` is read."""
        root = Path(path)
        try:
            _check_folder(root)
            manifest = loads(_read_bounded(root / MANIFEST, MAX_BYTES))
            _check_listing(root, manifest.files)
            for name, entry in manifest.files.items():
                _check_file(root / name, name, entry)
        except OSError as error:
            raise CorruptArtifactError(
                f"The artifact {root} cannot be read.", got=str(error), fix=FIX
            ) from error
        return cls(root, manifest)

    @property
    def size(self) -> int:
        """Bytes of all files, without the manifest."""
        return sum(entry.bytes for entry in self.manifest.files.values())

    def read(self, name: str) -> bytes | None:
        """A listed file's bytes, or None where the artifact does not have it."""
        return (self.path / name).read_bytes() if name in self.manifest.files else None

    def golden(self) -> list[tuple[dict[str, Array], dict[str, Array]]]:
        """The recorded (inputs, reference outputs) pairs."""
        safetensors = require("safetensors.numpy", purpose="Reading golden values")
        try:
            tensors = safetensors.load(self.read(GOLDEN) or b"")
        except (require("safetensors", purpose="").SafetensorError, ValueError) as error:
            raise CorruptArtifactError(f"{GOLDEN} cannot be read.", got=error, fix=FIX) from error
        return unpack_golden(tensors)


def pack_golden(
    pairs: list[tuple[Mapping[str, Array], Mapping[str, Array]]],
) -> bytes:
    """Inputs and reference outputs as one safetensors blob."""
    safetensors = require("safetensors.numpy", purpose="Writing golden values")
    tensors = {
        f"{index}/{role}/{name}": array.copy(order="C")
        for index, pair in enumerate(pairs)
        for role, arrays in zip(("input", "output"), pair, strict=True)
        for name, array in arrays.items()
    }
    return cast(bytes, safetensors.save(tensors))


def unpack_golden(
    tensors: Mapping[str, Array],
) -> list[tuple[dict[str, Array], dict[str, Array]]]:
    """The inverse of `pack_golden`."""
    pairs: dict[int, tuple[dict[str, Array], dict[str, Array]]] = {}
    for key, array in tensors.items():
        match = re.fullmatch(r"(\d{1,4})/(input|output)/(.+)", key)
        if match is None:
            raise CorruptArtifactError(f"{GOLDEN} has the unknown entry {key[:80]!r}.", fix=FIX)
        pair = pairs.setdefault(int(match[1]), ({}, {}))
        pair[match[2] == "output"][match[3]] = array
    if not pairs:
        raise CorruptArtifactError(f"{GOLDEN} has no golden values.", fix=FIX)
    return [pairs[index] for index in sorted(pairs)]


@contextlib.contextmanager
def staging(output: Path, *, overwrite: bool) -> Iterator[Path]:
    """A hidden folder beside `output` to build in; it is gone when the block ends or fails."""
    check_output(output, overwrite=overwrite)
    folder = output.parent / f".{output.name}.{os.getpid()}.tmp"
    try:
        _remove_stale(output)
        folder.mkdir(parents=True)
        yield folder
    except OSError as error:
        raise ArtifactError(
            f"The artifact {output} could not be written.",
            got=str(error),
            fix="free some space or choose another folder",
        ) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def publish(folder: Path, manifest: Manifest, output: Path) -> Artifact:
    """Hash the files of `folder`, add the manifest, make all durable and rename to `output`."""
    names = sorted(_walk(folder))
    files = {name: _entry(folder / name) for name in names}
    manifest = replace(manifest, files=files)
    (folder / MANIFEST).write_bytes(manifest.dumps())
    for name in [*names, MANIFEST]:
        with (folder / name).open("rb") as file:
            os.fsync(file.fileno())
    old = folder.with_name("replaced")
    if output.exists():
        output.rename(old)
    folder.rename(output)
    return Artifact.open(output)


def check_output(output: Path, *, overwrite: bool) -> None:
    """Raise InputError unless an artifact may be written at `output`."""
    if output.suffix != ".edge":
        raise InputError(
            "The output is not named as an artifact.",
            expected="a path that ends in .edge",
            got=output,
            fix=f"use {output.with_suffix('.edge')}",
        )
    if output.exists() and not (overwrite and (output / MANIFEST).is_file()):
        raise InputError(
            f"The output {output} exists already.",
            fix="choose another path" if overwrite else "pass overwrite=True (--overwrite)",
        )


def _remove_stale(output: Path) -> None:
    """Remove what killed compiles of the same output left behind."""
    for folder in output.parent.glob(f".{output.name}.*.tmp"):
        pid = folder.suffixes[-2][1:]
        if pid.isdigit() and (int(pid) == os.getpid() or not _alive(int(pid))):
            shutil.rmtree(folder, ignore_errors=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _check_folder(root: Path) -> None:
    if root.is_symlink() or not root.is_dir():
        raise CorruptArtifactError(
            f"{root} is not an artifact.",
            expected="a folder that holds manifest.json",
            got="a link" if root.is_symlink() else "a file" if root.exists() else "nothing there",
            fix="give the path of the .edge folder itself",
        )


def _read_bounded(path: Path, limit: int) -> bytes:
    """The bytes of a regular file of at most `limit` bytes."""
    size = _regular(path, path.name).st_size
    if size > limit:
        raise CorruptArtifactError(
            f"{path.name} is too large.", expected=f"at most {limit} bytes", got=size, fix=FIX
        )
    with path.open("rb") as file:
        return file.read(limit)


def _regular(path: Path, name: str) -> os.stat_result:
    try:
        status = path.lstat()
    except FileNotFoundError as error:
        raise CorruptArtifactError(f"The file {name!r} is missing.", fix=FIX) from error
    if not stat.S_ISREG(status.st_mode):
        raise CorruptArtifactError(f"{name!r} is a link or not a plain file.", fix=FIX)
    return status


def _check_listing(root: Path, files: Mapping[str, FileEntry]) -> None:
    """Every listed path is safe, and the folder holds the listed files and no others."""
    for name in files:
        parts = PurePosixPath(name).parts
        if not all(SAFE_NAME.fullmatch(part) for part in parts) or "/".join(parts) != name:
            raise CorruptArtifactError(
                f"The manifest lists the unsafe path {name[:80]!r}.", fix=FIX
            )
    unlisted = sorted(set(_walk(root)) - set(files) - {MANIFEST})
    if unlisted:
        raise CorruptArtifactError(
            "The artifact holds files that its manifest does not list.", got=unlisted[:5], fix=FIX
        )


def _walk(root: Path) -> Iterator[str]:
    """Relative POSIX paths of all that is not a folder; links are not followed."""
    count = 0
    for folder, names, files in os.walk(root, followlinks=False):
        here = Path(folder)
        links = [name for name in names if (here / name).is_symlink()]
        for name in [*files, *links]:
            count += 1
            yield (here / name).relative_to(root).as_posix()
        if count > MAX_FILES or len(here.relative_to(root).parts) > MAX_DEPTH:
            raise CorruptArtifactError(f"{root} holds too many files or folders.", fix=FIX)


def _check_file(path: Path, name: str, entry: FileEntry) -> None:
    size = _regular(path, name).st_size
    if size != entry.bytes or _digest(path) != entry.sha256:
        raise CorruptArtifactError(
            f"The file {name!r} was changed.",
            expected=f"{entry.bytes} bytes, SHA-256 {entry.sha256[:80]}",
            got=f"{size} bytes" if size != entry.bytes else "another SHA-256",
            fix=FIX,
        )


def _entry(path: Path) -> FileEntry:
    return FileEntry(path.stat().st_size, _digest(path))


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
