"""The artifact: a folder `name.edge/` with a manifest, engine files and golden values.

Safe to open: nothing is unpickled or executed, every file is listed with its size and SHA-256, no
path leaves the folder, no link is followed, and all that is read is bounded. Written to a hidden
folder beside its place and renamed, so that it is there whole or not at all.
"""

from __future__ import annotations

import contextlib
import errno
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
from sdk.manifest import FileEntry, Manifest, Placed, loads
from sdk.signature import Array
from sdk.structure import FIX, from_json, parse

MANIFEST, GOLDEN, PROCESSOR, SOURCES, PLACEMENT = (
    "manifest.json",
    "golden.safetensors",
    "processor.json",
    "sources.json",
    "placement.json",
)
SAFE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
LOCK, REPLACED = "lock", "replaced"  # in the staging folder
MAX_FILES, MAX_DEPTH = 1000, 8
MAX_MANIFEST, MAX_JSON, MAX_GOLDEN = 4 << 20, 16 << 20, 1 << 30  # bytes


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
            manifest = loads(_read_bounded(root / MANIFEST, MAX_MANIFEST))
            _check_listing(root, manifest.files)
            for name, entry in manifest.files.items():
                _check_file(root / name, name, entry)
        except OSError as error:
            raise _unreadable(root, error) from error
        return cls(root, manifest)

    @property
    def size(self) -> int:
        """Bytes of all files, without the manifest."""
        return sum(entry.bytes for entry in self.manifest.files.values())

    def read(self, name: str, limit: int = MAX_JSON) -> bytes | None:
        """The bytes of a listed file of at most `limit` bytes; None where it is not listed."""
        if name not in self.manifest.files:
            return None
        try:
            return _read_bounded(self.path / name, limit)
        except OSError as error:
            raise _unreadable(self.path, error) from error

    def placement(self) -> tuple[Placed, ...]:
        """Which operator ran where when it was compiled; empty where that was not recorded."""
        text = self.read(PLACEMENT)
        if text is None:
            return ()
        return from_json(tuple[Placed, ...], parse(text, "placement"), "placement")

    def golden(self) -> list[tuple[dict[str, Array], dict[str, Array]]]:
        """The recorded (inputs, reference outputs) pairs, each of the whole signature."""
        safetensors = require("safetensors.numpy", purpose="Reading golden values")
        failure = require("safetensors", purpose="Reading golden values").SafetensorError
        try:
            tensors = safetensors.load(self.read(GOLDEN, MAX_GOLDEN) or b"")
        except (failure, ValueError, KeyError, TypeError, AttributeError) as error:
            raise CorruptArtifactError(f"{GOLDEN} cannot be read.", got=error, fix=FIX) from error
        pairs = unpack_golden(tensors)
        signature = self.manifest.function.signature
        names = tuple(
            {spec.name for spec in side} for side in (signature.inputs, signature.outputs)
        )
        if any((set(inputs), set(outputs)) != names for inputs, outputs in pairs):
            raise CorruptArtifactError(
                f"{GOLDEN} does not hold the inputs and outputs of the signature.", fix=FIX
            )
        return pairs


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
    """A hidden folder beside `output` to build in; it is gone when the block ends or fails.

    One at a time: whoever else builds the same output meanwhile gets an ArtifactError.
    """
    check_output(output, overwrite=overwrite)
    hidden = output.parent / f".{output.name}.tmp"
    try:
        hidden.mkdir(parents=True, exist_ok=True)
        with _locked(hidden / LOCK):
            try:
                _clear(hidden, output)
                check_output(output, overwrite=overwrite)  # it may have been put back
                yield hidden
            finally:
                shutil.rmtree(hidden, ignore_errors=True)
    except OSError as error:
        if not _is_about(error, hidden, output):
            raise
        raise ArtifactError(
            f"The artifact {output} could not be written.",
            got=str(error),
            fix="free some space or choose another folder",
        ) from error


def publish(folder: Path, manifest: Manifest, output: Path, *, overwrite: bool = False) -> Artifact:
    """Hash the files of `folder`, add the manifest, make all durable and rename to `output`.

    `folder` is in the staging folder of `output`. With `overwrite` an artifact at `output` is
    replaced; without, one that came there in the meantime is left alone (ArtifactError).
    """
    names = sorted(_walk(folder))
    files = {name: _entry(folder / name) for name in names}
    manifest = replace(manifest, files=files).sealed()
    (folder / MANIFEST).write_bytes(manifest.dumps())
    artifact = Artifact.open(folder)
    for path in (folder, *folder.rglob("*")):
        _sync(path)
    old = folder.with_name(REPLACED)
    if overwrite and output.exists():
        output.rename(old)
    try:
        folder.rename(output)
    except OSError:
        if old.exists():
            old.rename(output)
        raise
    _sync(output.parent)
    return replace(artifact, path=output)


def check_output(output: Path, *, overwrite: bool) -> None:
    """Raise InputError unless an artifact may be written at `output`."""
    if output.suffix != ".edge":
        raise InputError(
            "The output is not named as an artifact.",
            expected="a path that ends in .edge",
            got=output,
            fix=f"use {output.name or 'model'}.edge",
        )
    replaceable = (output / MANIFEST).is_file() and not output.is_symlink()
    if os.path.lexists(output) and not (overwrite and replaceable):
        raise InputError(
            f"The output {output} exists already.",
            got="an artifact" if replaceable else "something that is not an artifact",
            fix="pass overwrite=True (--overwrite)" if replaceable else "choose another path",
        )


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the lock file `path`. The system releases it when the process dies."""
    import fcntl  # not on Windows, where artifacts are only read

    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            held = path.stat().st_ino == os.fstat(file.fileno()).st_ino
        except (BlockingIOError, FileNotFoundError):
            held = False
        if not held:
            raise ArtifactError(
                f"Another compile writes to {path.parent.name[1:-4]} at this moment.",
                fix="wait for it, or choose another output",
            )
        yield


def _clear(hidden: Path, output: Path) -> None:
    """Remove what a killed compile left; put back an artifact that it was about to replace."""
    old = hidden / REPLACED
    if old.exists() and not output.exists():
        old.rename(output)
    for path in hidden.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != LOCK:
            path.unlink()


def _is_about(error: OSError, hidden: Path, output: Path) -> bool:
    """Whether an error comes from writing here, and not from the caller's own code in the block."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO):
        return True
    if not isinstance(error.filename, str | os.PathLike):
        return False
    path = Path(error.filename)
    return path == output or path.is_relative_to(hidden) or hidden.is_relative_to(path)


def _sync(path: Path) -> None:
    """Make a file or folder durable."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _check_folder(root: Path) -> None:
    if root.is_symlink() or not root.is_dir():
        raise CorruptArtifactError(
            f"{root} is not an artifact.",
            expected="a folder that holds manifest.json",
            got="a link" if root.is_symlink() else "a file" if root.exists() else "nothing there",
            fix="give the path of the .edge folder itself",
        )


def _unreadable(root: Path, error: OSError) -> CorruptArtifactError:
    return CorruptArtifactError(f"The artifact {root} cannot be read.", got=str(error), fix=FIX)


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
        raise _not_plain(name)
    return status


def _not_plain(name: str) -> CorruptArtifactError:
    return CorruptArtifactError(f"{name!r} is a link or not a plain file.", fix=FIX)


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


def _walk(root: Path) -> list[str]:
    """Relative POSIX paths of all files; whatever is neither a file nor a folder is refused."""
    found: list[str] = []
    folders, seen = [root], 0
    while folders:
        with os.scandir(folders.pop()) as entries:
            for entry in entries:
                name = Path(entry.path).relative_to(root).as_posix()
                seen += 1
                if seen > MAX_FILES or name.count("/") > MAX_DEPTH:
                    raise CorruptArtifactError(f"{root} holds too many files or folders.", fix=FIX)
                if entry.is_dir(follow_symlinks=False):
                    folders.append(Path(entry.path))
                elif entry.is_file(follow_symlinks=False):
                    found.append(name)
                else:
                    raise _not_plain(name)
    return found


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
