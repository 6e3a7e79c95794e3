"""Feeds: from batches as callers give them, from golden values, stacked and cut."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from sdk.artifact import Artifact
from sdk.errors import QuantizationError
from sdk.signature import Array, Dim, Signature, TensorSpec

Feed = dict[str, Array]


def golden_feed(artifact: Artifact, *, largest: bool = False) -> dict[str, Array]:
    """Inputs for a caller who gives none: the artifact's golden ones.

    They are repeated along dynamic dims up to `opt`, or for the largest feed to `max`.
    """
    signature = artifact.manifest.function.signature
    inputs, _ = artifact.golden()[0]
    return {spec.name: _resize(inputs[spec.name], spec, largest) for spec in signature.inputs}


def batch_of(signature: Signature, feed: dict[str, Array]) -> int:
    """How many items a feed holds: the size of the first input's first dim if it is dynamic."""
    spec = signature.inputs[0]
    dynamic = bool(spec.shape) and isinstance(spec.shape[0], Dim)
    return feed[spec.name].shape[0] if dynamic else 1


def _resize(array: Array, spec: TensorSpec, largest: bool) -> Array:
    for axis, dim in enumerate(spec.shape):
        if isinstance(dim, Dim):
            size = dim.max if largest else dim.opt or dim.min
            array = np.take(array, np.arange(size) % array.shape[axis], axis=axis)
    return np.asarray(array, order="C")


def as_feeds(signature: Signature, batches: Iterable[Any]) -> list[Feed]:
    """Batches (arrays, torch tensors, sequences or mappings) as feeds by input name."""
    return [_as_feed(signature, batch) for batch in batches]


def _as_feed(signature: Signature, batch: Any) -> Feed:
    names = [spec.name for spec in signature.inputs]
    if isinstance(batch, Mapping):
        return {name: _as_array(value) for name, value in batch.items()}
    values = list(batch) if isinstance(batch, (list, tuple)) else [batch]
    if len(values) != len(names):
        raise QuantizationError(
            "A batch does not have the model's inputs.", expected=names, got=f"{len(values)} values"
        )
    return {name: _as_array(value) for name, value in zip(names, values, strict=True)}


def _as_array(value: Any) -> Array:
    return np.asarray(value.detach().cpu() if hasattr(value, "detach") else value)


def stacked(results: Sequence[Mapping[str, Array]]) -> dict[str, Array]:
    """Outputs over all feeds, stacked along the first axis where the others agree."""
    return {name: _stack([result[name] for result in results]) for name in results[0]}


def _stack(arrays: list[Array]) -> Array:
    if len(arrays) == 1:
        return arrays[0]
    agree = arrays[0].ndim and len({array.shape[1:] for array in arrays}) == 1
    return np.concatenate(arrays if agree else [array.reshape(-1) for array in arrays])


def smallest(feed: Feed, signature: Signature) -> Feed:
    """The feed cut to the least size of each dynamic dim: golden values should be small."""
    small = {}
    for spec in signature.inputs:
        index = tuple(slice(dim.min) if isinstance(dim, Dim) else slice(None) for dim in spec.shape)
        small[spec.name] = feed[spec.name][index].copy()
    return small
