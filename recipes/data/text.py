"""Texts to learn a language from: any folder, the standard library, installed packages."""

from __future__ import annotations

import hashlib
import importlib.metadata
import re
import sysconfig
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from sdk.errors import InputError

STDLIB, PACKAGES = "stdlib", "packages"
MAX_BYTES = 300_000  # longer files are tables and generated code
LONG_LINE = 1000
LEFT_OUT = {"site-packages", "__pycache__", "_vendor", "test", "tests", "idle_test", "lib2to3"}
PERMISSIVE = re.compile(
    r"\b(0BSD|Apache|BSD|BSL-1\.0|Boost|CC0|ISC|MIT|PSF|Python Software Foundation|Unlicense|Zlib"
    r"|CNRI-Python)\b",
    re.IGNORECASE,
)
RESTRICTED = re.compile(
    r"GPL|General Public|\bMPL|Mozilla|\bEPL|Eclipse|CDDL|EUPL|proprietary|NVIDIA|commercial|EULA",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Document:
    """One text; documents of one group are held out together."""

    group: str
    path: str
    text: str


def documents(data: str, pattern: str = "*.py") -> Iterator[Document]:
    """`stdlib`, `packages`, or a folder of which the files that match are read.

    Texts that are no UTF-8, very long, have very long lines or were seen already are left out.
    """
    found = packages() if data == PACKAGES else files(folder_of(data), pattern)
    seen: set[bytes] = set()
    for group, path, file in found:
        text = _read(file)
        digest = hashlib.sha256(text.encode()).digest()
        if text and digest not in seen:
            seen.add(digest)
            yield Document(group, path, text)


def folder_of(data: str) -> Path:
    """The folder that `data` means; InputError where there is none."""
    folder = Path(sysconfig.get_paths()["stdlib"]) if data == STDLIB else Path(data)
    if not folder.is_dir():
        raise InputError(
            f"There is no folder of text at {data!r}.",
            expected=f"a folder, {STDLIB!r}, or {PACKAGES!r}",
            got=data,
        )
    return folder


def files(folder: Path, pattern: str) -> Iterator[tuple[str, str, Path]]:
    """(top-level entry, relative path, file) of each file that matches, in alphabetical order."""
    for file in sorted(folder.rglob(pattern)):
        relative = file.relative_to(folder)
        if file.is_file() and not LEFT_OUT & set(relative.parts):
            yield relative.parts[0], relative.as_posix(), file


def packages() -> Iterator[tuple[str, str, Path]]:
    """(package, relative path, file) of the Python sources of permissively licensed packages."""
    found = {_name(one): one for one in importlib.metadata.distributions()}
    for name in sorted(found):
        if not permissive(found[name]):
            continue
        for path in sorted(found[name].files or []):
            if path.suffix == ".py" and not LEFT_OUT & set(path.parts) and ".." not in path.parts:
                yield name, path.as_posix(), Path(str(found[name].locate_file(path)))


def permissive(package: importlib.metadata.Distribution) -> bool:
    """Whether its metadata name permissive licences only; where they name none, it is not."""
    fields = {
        name: package.metadata.get_all(name) or []
        for name in ("License-Expression", "License", "Classifier")
    }
    stated = [*fields["License-Expression"]]
    # A whole licence in the field `License` names other people's licences, too: its first line.
    stated += [line for text in fields["License"] for line in text.strip().splitlines()[:1]]
    stated += [text for text in fields["Classifier"] if text.startswith("License ::")]
    joined = " ; ".join(stated)
    return bool(PERMISSIVE.search(joined)) and not RESTRICTED.search(joined)


def split(
    texts: Iterable[Document], *, every: int, most: float = 0.05
) -> tuple[list[Document], list[Document]]:
    """(to learn from, held out): one group in `every`, by its name; none larger than `most` of all.

    A group that is held out stays so whatever else there is.
    """
    texts = list(texts)
    sizes: dict[str, int] = {}
    for text in texts:
        sizes[text.group] = sizes.get(text.group, 0) + len(text.text)
    limit = most * sum(sizes.values())
    held = {group for group, size in sizes.items() if _draw(group) % every == 0 and size < limit}
    if texts and not held:
        held = {min((g for g in sizes), key=_draw)} if len(sizes) > 1 else set()
    return (
        [text for text in texts if text.group not in held],
        [text for text in texts if text.group in held],
    )


def _draw(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")


def _name(package: importlib.metadata.Distribution) -> str:
    return re.sub(r"[-_.]+", "-", package.metadata["Name"] or "").lower()


def _read(file: Path) -> str:
    """The text, or nothing where it is not one to learn from."""
    try:
        if file.stat().st_size > MAX_BYTES:
            return ""
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""
    text = text.replace("\r\n", "\n")
    return "" if max(map(len, text.splitlines()), default=0) > LONG_LINE else text
