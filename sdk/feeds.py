"""Inputs for a model whose caller gives none: the artifact's golden ones, resized."""

from __future__ import annotations

import numpy as np

from sdk.artifact import Artifact
from sdk.signature import Array, Dim, Signature, TensorSpec


def golden_feed(artifact: Artifact, *, largest: bool = False) -> dict[str, Array]:
    """The golden inputs, repeated along dynamic dims up to `opt`, or to `max` for the largest."""
    signature = artifact.manifest.functions["main"].signature
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
    return np.ascontiguousarray(array)
