"""Image sets as one uint8 array, decoded once and memory-mapped.

A data folder has `train` and `test`, each a parquet file (columns `image`, encoded bytes, and
`label`) or a folder with one sub-folder of images per class; `labels.txt`, one name a line, is
optional. The word `digits` stands for scikit-learn's scanned digits, which ship with that library.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sdk.errors import InputError
from sdk.extras import require
from sdk.processor import ImageProcessor
from sdk.progress import Report
from sdk.signature import Array

DATA_VARIABLE = "EDGE_DATA"
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")


@dataclass(frozen=True)
class ImageSet:
    """`pixels` uint8 of N x H x W x 3, `labels` int64 of N, and the class names."""

    pixels: Array
    labels: Array
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: Array) -> ImageSet:
        """The images at `indices`."""
        return ImageSet(self.pixels[indices], self.labels[indices], self.classes)


def load(data: str, size: int, cache: Path, progress: Report) -> tuple[ImageSet, ImageSet]:
    """Training and test images of `size` x `size` pixels; decoded copies are kept in `cache`."""
    if data == "digits":
        return _digits(size)
    root = root_of(data)
    if root is None or not root.is_dir():
        raise InputError(
            "The recipe's data folder is not there.",
            expected="a folder with train and test, as parquet files or as folders of images",
            got=str(root) if root else f"no data setting, and ${DATA_VARIABLE} is not set",
            fix="pass data=PATH (--data PATH)",
        )
    train, test = (_load_split(root, name, size, cache, progress) for name in ("train", "test"))
    return train, test


def root_of(data: str) -> Path | None:
    """The folder that the setting `data`, or else the environment, names."""
    named = data or os.environ.get(DATA_VARIABLE, "")
    return Path(named) if named and named != "digits" else None


def stratified(labels: Array, count: int, seed: int) -> Array:
    """`count` indices with the classes in equal parts, in random order."""
    rng = np.random.default_rng(seed)
    groups = [rng.permutation(np.flatnonzero(labels == c)) for c in np.unique(labels)]
    if count > len(labels):
        raise InputError(f"{count} labelled images were asked for; there are {len(labels)}.")
    ordered = [group[i] for i in range(max(map(len, groups))) for group in groups if i < len(group)]
    return rng.permutation(np.array(ordered[:count]))


def _digits(size: int) -> tuple[ImageSet, ImageSet]:
    """1,797 digits of 8 x 8 pixels, enlarged; every fifth one is for the test."""
    datasets = require("sklearn.datasets", purpose="The data set 'digits'")
    found = datasets.load_digits()
    grey = (found.images * (255 / 16)).astype(np.uint8)
    resize = ImageProcessor(size=(size, size), scale=1.0, layout="NHWC", interpolation="bicubic")
    pixels = resize(list(grey)).astype(np.uint8)
    whole = ImageSet(pixels, found.target.astype(np.int64), tuple(map(str, range(10))))
    test = np.arange(len(whole)) % 5 == 0
    return whole.take(np.flatnonzero(~test)), whole.take(np.flatnonzero(test))


def _load_split(root: Path, name: str, size: int, cache: Path, progress: Report) -> ImageSet:
    parquet = root / f"{name}.parquet"
    images: Sequence[bytes | Path]
    if parquet.is_file():
        images, labels = _read_parquet(parquet)
        classes = _class_names(root, labels)
    elif (root / name).is_dir():
        images, labels, classes = _read_folder(root / name)
    else:
        raise InputError(
            f"The data folder has no {name!r} part.",
            expected=f"{name}.parquet or a folder {name}/ with one sub-folder per class",
            got=sorted(path.name for path in root.iterdir())[:20],
        )
    pixels = _decoded(images, cache / f"{name}-{size}.npy", size, f"decode {name}", progress)
    return ImageSet(pixels, labels, classes)


def _read_parquet(path: Path) -> tuple[list[bytes], Array]:
    parquet = require("pyarrow.parquet", purpose="Reading parquet files")
    table = parquet.read_table(path)
    missing = {"image", "label"} - set(table.column_names)
    if missing:
        raise InputError(
            f"{path.name} lacks the columns {sorted(missing)}.",
            expected="image (encoded bytes) and label (integer)",
            got=table.column_names,
        )
    images = table.column("image").to_pylist()
    images = [image["bytes"] if isinstance(image, dict) else image for image in images]
    return images, table.column("label").to_numpy().astype(np.int64)


def _class_names(root: Path, labels: Array) -> tuple[str, ...]:
    count = int(labels.max()) + 1
    file = root / "labels.txt"
    if not file.is_file():
        return tuple(map(str, range(count)))
    names = tuple(line.strip() for line in file.read_text().splitlines() if line.strip())
    if len(names) < count:
        raise InputError(f"labels.txt has {len(names)} names for {count} classes.")
    return names


def _read_folder(folder: Path) -> tuple[list[Path], Array, tuple[str, ...]]:
    classes = tuple(sorted(path.name for path in folder.iterdir() if path.is_dir()))
    files = [
        (file, index)
        for index, name in enumerate(classes)
        for file in sorted((folder / name).rglob("*"))
        if file.suffix.lower() in SUFFIXES
    ]
    if not files:
        raise InputError(f"{folder} has no images.", expected="one sub-folder of images per class")
    return [file for file, _ in files], np.array([i for _, i in files], np.int64), classes


def _decoded(images: Sequence[Any], file: Path, size: int, what: str, progress: Report) -> Array:
    """The images as a memory-mapped array; an earlier run's file is used if it is whole."""
    if file.is_file():
        pixels = np.load(file, mmap_mode="c")
        if pixels.shape == (len(images), size, size, 3):
            return pixels  # type: ignore[no-any-return]
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(".part.npy")
    shape = (len(images), size, size, 3)
    target = np.lib.format.open_memmap(part, mode="w+", dtype=np.uint8, shape=shape)
    process = ImageProcessor(size=(size, size), resize=size, scale=1.0, layout="NHWC")
    for start, batch in _chunks(images, 256):
        progress(what, start, len(images))
        target[start : start + len(batch)] = process(batch).round().clip(0, 255)
    target.flush()
    part.rename(file)
    return np.load(file, mmap_mode="c")  # type: ignore[no-any-return]


def _chunks(items: Sequence[Any], size: int) -> Iterator[tuple[int, Sequence[Any]]]:
    return ((start, items[start : start + size]) for start in range(0, len(items), size))
