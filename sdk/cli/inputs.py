"""Read what the command line gives as text or files: arrays, shapes, dims, processing."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from sdk.errors import CorruptArtifactError, InputError
from sdk.extras import require
from sdk.processor import Classification, Processor
from sdk.signature import DTYPES, Array, Dim

ARRAY_SUFFIXES = (".npy", ".npz", ".safetensors")
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm")
Arrays = Array | dict[str, Array]
Dynamic = dict[str, dict[int, Dim]]


def load_arrays(path: Path) -> Arrays:
    """The array of an .npy file, or the named arrays of an .npz or .safetensors file."""
    if path.suffix not in ARRAY_SUFFIXES:
        raise InputError(
            f"{path} is not a file of arrays.", expected=f"one of {', '.join(ARRAY_SUFFIXES)}"
        )
    if not path.is_file():
        raise InputError(f"There is no file {path}.", fix="check the path")
    if path.suffix == ".safetensors":
        return _load_safetensors(path)
    try:
        loaded = np.load(path, allow_pickle=False)
        return loaded if isinstance(loaded, np.ndarray) else {name: loaded[name] for name in loaded}
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(
            f"{path} cannot be read.",
            expected="arrays of numbers, written by numpy.save or numpy.savez",
            got=error,
        ) from error


def _load_safetensors(path: Path) -> dict[str, Array]:
    safetensors = require("safetensors", purpose="Reading .safetensors files")
    numpy = require("safetensors.numpy", purpose="Reading .safetensors files")
    try:
        return dict(numpy.load_file(path))
    except (safetensors.SafetensorError, KeyError, TypeError) as error:
        raise InputError(f"{path} cannot be read.", got=error) from error


def random_inputs(shapes: Sequence[str]) -> dict[str, Array]:
    """Named arrays from `name=1x3x224x224[:dtype]`: normal floats, integers 0 to 9, from seed 0."""
    rng = np.random.default_rng(0)
    return {name: _random(rng, sizes, dtype) for name, sizes, dtype in map(_parse_shape, shapes)}


def _parse_shape(text: str) -> tuple[str, tuple[int, ...], str]:
    name, _, rest = text.partition("=")
    sizes, _, dtype = rest.partition(":")
    numbers = sizes.split("x") if sizes else []
    dtype = dtype or "float32"
    if not name or not numbers or not all(n.isdecimal() and int(n) for n in numbers):
        raise _unparsed("--shape", text, "name=1x3x224x224[:dtype]")
    if dtype not in DTYPES:
        raise _unparsed("--shape", text, f"a dtype among {', '.join(DTYPES)}")
    return name, tuple(map(int, numbers)), dtype


def _random(rng: np.random.Generator, sizes: tuple[int, ...], dtype: str) -> Array:
    if dtype.startswith("float"):
        return rng.standard_normal(sizes).astype(dtype)
    return rng.integers(0, 2 if dtype == "bool" else 10, sizes).astype(dtype)


def parse_dynamic(texts: Sequence[str]) -> Dynamic:
    """`name:axis=dim[:min:opt:max]`, repeated, as `sdk.compile` takes it."""
    dynamic: Dynamic = {}
    for text in texts:
        left, _, right = text.partition("=")
        name, _, axis = left.rpartition(":")
        dim, *sizes = right.split(":")
        numbers = [axis, *sizes]
        if not (name and dim) or len(sizes) not in (0, 3) or not all(map(str.isdecimal, numbers)):
            raise _unparsed("--dynamic", text, "input:axis=name[:min:opt:max], as x:0=batch:1:1:16")
        dynamic.setdefault(name, {})[int(axis)] = Dim(dim, *map(int, sizes))
    return dynamic


def calibration_rows(path: Path, processor: Processor | None) -> Arrays:
    """Real inputs stacked along axis 0: a file of arrays, or a folder of images."""
    if not path.is_dir():
        return load_arrays(path)
    if processor is None or processor.pre is None:
        raise InputError(
            "A folder of images needs a processor to become inputs.",
            got=path,
            fix="add --processor processor.json",
        )
    images = sorted(f for f in path.rglob("*") if f.suffix.lower() in IMAGE_SUFFIXES)
    if not images:
        raise InputError(
            f"There are no images in {path}.", expected=f"files of {', '.join(IMAGE_SUFFIXES)}"
        )
    return {processor.input: processor.pre(images)}


def batches(rows: Arrays, size: int) -> tuple[list[Arrays], int]:
    """The rows in batches of `size`, and how many rows at the end do not fill one."""
    named = rows if isinstance(rows, dict) else {"": rows}
    counts = {name: len(array) if array.ndim else 0 for name, array in named.items()}
    if len(set(counts.values())) != 1 or min(counts.values()) < size:
        raise InputError(
            "The calibration data does not fill a batch.",
            expected=f"arrays with the same number of rows along axis 0, at least {size}",
            got=", ".join(f"{name or 'array'}: {count}" for name, count in counts.items())
            or "none",
        )
    count = next(iter(counts.values()))
    starts = range(0, count - size + 1, size)
    return [cut(rows, start, size) for start in starts], count % size


def cut(rows: Arrays, start: int, size: int) -> Arrays:
    """`size` rows from `start`."""
    if isinstance(rows, dict):
        return {name: array[start : start + size] for name, array in rows.items()}
    return rows[start : start + size]


def batch_size(example: Any, dynamic: Dynamic) -> int:
    """How many rows one batch takes: the most that a dynamic axis 0 allows, else the example's."""
    dims = [axes[0].max for axes in dynamic.values() if 0 in axes]
    if dims:
        return min(dims)
    values = list(example.values()) if isinstance(example, Mapping) else example
    first = values[0] if isinstance(values, (list, tuple)) else values
    return int(first.shape[0]) if first.ndim else 1


def load_processor(path: Path | None, labels: Path | None) -> Processor | None:
    """The processor in a JSON file, with the class labels of a text file, one on each line."""
    if path is None:
        if labels is None:
            return None
        raise InputError("Labels need a processor.", fix="add --processor processor.json")
    try:
        processor = Processor.from_json(json.loads(path.read_text(encoding="utf-8")))
    except (CorruptArtifactError, ValueError) as error:
        raise InputError(
            f"{path} is not a processor.",
            expected=getattr(error, "expected", None) or "JSON",
            got=getattr(error, "got", None) or error,
            fix="write what sdk.Processor(...).to_json() returns",
        ) from error
    return processor if labels is None else _labelled(processor, labels)


def _labelled(processor: Processor, path: Path) -> Processor:
    lines = path.read_text(encoding="utf-8").splitlines()
    names = tuple(line.strip() for line in lines if line.strip())
    post = processor.post
    labelled = replace(post, labels=names) if post is not None else Classification(names)
    return replace(processor, post=labelled, output=processor.output or "output")


def _unparsed(option: str, text: str, expected: str) -> InputError:
    return InputError(f"{option} {text!r} does not parse.", expected=expected, got=repr(text))
