"""`edge predict`: run an artifact on images or arrays."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from rich.console import RenderableType
from typer import Argument, Option

import sdk
from sdk.cli.inputs import ARRAY_SUFFIXES, load_arrays
from sdk.cli.options import ArtifactPath, Device, Threads
from sdk.cli.output import Answer, say
from sdk.errors import InputError
from sdk.processor import Label
from sdk.signature import Array

MAX_VALUES = 1000


def predict(
    path: ArtifactPath,
    inputs: Annotated[
        list[str], Argument(metavar="INPUT...", help="Images, .npy, .npz or .safetensors files.")
    ],
    *,
    output: Annotated[Path | None, Option("--output", "-o", help="Write all to an .npz.")] = None,
    device: Device = "auto",
    fallback: Annotated[
        str, Option(help="Where the device is missing: forbid, warn or allow the CPU.")
    ] = "warn",
    threads: Threads = None,
) -> Answer:
    """Run an artifact on each INPUT and print labels, or a summary of the output arrays.

    Images go through the artifact's processor; arrays go to the model as they are.

    Examples:

    ```console
    $ edge predict student.edge cat.jpg dog.png
    $ edge predict student.edge x.npz --output y.npz
    ```
    """
    if output is not None and output.suffix != ".npz":
        raise InputError("The output is not an .npz file.", expected="a path in .npz", got=output)
    values = [load_arrays(p) if (p := Path(t)).suffix in ARRAY_SUFFIXES else t for t in inputs]
    with sdk.load(path, device=device, fallback=fallback, threads=threads) as model:
        results = model.predict(values)
        target = str(model.target)
    if output is not None:
        arrays = [_arrays(result) for result in results]
        _save(output, arrays)
    found = [{"input": name, **_plain(r)} for name, r in zip(inputs, results, strict=True)]
    document = {"artifact": str(path), "target": target, "results": found}
    return Answer(document=document, view=lambda: _view(inputs, results))


def _view(inputs: list[str], results: list[Any]) -> Iterator[RenderableType]:
    for name, result in zip(inputs, results, strict=True):
        if _is_labels(result):
            yield f"{name}: {', '.join(map(str, result))}"
            continue
        for output, array in _arrays(result).items():
            yield f"{name}: {output} {array.dtype}{list(array.shape)} {_summary(array)}"


def _is_labels(result: Any) -> bool:
    return isinstance(result, list) and all(isinstance(item, Label) for item in result)


def _plain(result: Any) -> dict[str, Any]:
    if _is_labels(result):
        return {"labels": result}
    return {"outputs": {name: _described(array) for name, array in _arrays(result).items()}}


def _described(array: Array) -> dict[str, Any]:
    """Shape and dtype, and the values of an array that is small enough to be read."""
    described: dict[str, Any] = {"dtype": str(array.dtype), "shape": list(array.shape)}
    if array.size <= MAX_VALUES:
        described["values"] = array.tolist()
    return described


def _arrays(result: Any) -> dict[str, Array]:
    if _is_labels(result):
        return {
            "label": np.array([label.name for label in result]),
            "index": np.array([label.index for label in result]),
            "probability": np.array([label.probability for label in result]),
        }
    return dict(result) if isinstance(result, Mapping) else {"output": np.asarray(result)}


def _summary(array: Array) -> str:
    if array.size == 0:
        return "(empty)"
    first = np.array2string(array.reshape(-1)[:6], precision=4, separator=", ")
    if array.dtype.kind not in "fiu":
        return first
    return f"min {array.min():.4g} mean {array.mean():.4g} max {array.max():.4g}: {first} ..."


def _save(path: Path, results: list[dict[str, Array]]) -> None:
    """`<output>` for one input, `<index>/<output>` for several."""
    single = len(results) == 1
    arrays = {
        name if single else f"{index}/{name}": array
        for index, result in enumerate(results)
        for name, array in result.items()
    }
    np.savez(path, **arrays)  # type: ignore[arg-type]
    say(f"wrote {path}")
