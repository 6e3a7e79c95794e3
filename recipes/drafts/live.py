"""A step in PyTorch as an engine session, with the weights that the module has at each call.

For drafts that are trained while they serve, and for trying a step before it is compiled.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch

from sdk.compilers.capture import Named
from sdk.compilers.dims import Dynamic
from sdk.errors import EngineError
from sdk.runtimes.session import EngineProfile, Placement, Session, closed, fill
from sdk.signature import Array, Signature, TensorSpec

if TYPE_CHECKING:
    from transformers import PreTrainedModel

VARYING: Mapping[str, Mapping[int, tuple[str, int]]] = {
    # output -> axis -> the input and axis that has its size
    "logits": {0: ("rows", 0)},
    "keys": {2: ("positions", 1)},
    "values": {2: ("positions", 1)},
    "features": {0: ("positions", 1)},
}


class LiveSession:
    """Runs a step; a `StepSession` can drive it. Not thread-safe."""

    def __init__(self, step: Named, example: Mapping[str, Array], dynamic: Dynamic) -> None:
        self.step = step
        self._run: Callable[..., dict[str, Array]] = self._call
        self.signature = _signature(self.run(example), example, dynamic)

    @classmethod
    def of(cls, model: PreTrainedModel, *, features: bool = False) -> LiveSession:
        """Of a causal language model, or of one that is being trained."""
        from sdk.compilers.huggingface_generation import generative

        made = generative(model, None, features=features)
        return cls(made.step, made.inputs, made.dynamic or {})

    def run(
        self, feed: Mapping[str, Array], outputs: Mapping[str, Array] | None = None
    ) -> dict[str, Array]:
        """Run once in eval mode without gradients."""
        return self._run(feed, outputs)

    def placement(self) -> list[Placement]:
        """Nothing is placed."""
        return []

    def profile(
        self,
        feed: Mapping[str, Array],  # noqa: ARG002  the protocol's
        *,
        runs: int,  # noqa: ARG002
        through: Callable[[Session], Any] | None = None,  # noqa: ARG002
    ) -> EngineProfile:
        """PyTorch's own profiler does that better."""
        raise EngineError("A live session is not profiled.", fix="profile the compiled artifact")

    def close(self) -> None:
        """It runs no more."""
        self._run = closed

    def _call(
        self, feed: Mapping[str, Array], outputs: Mapping[str, Array] | None = None
    ) -> dict[str, Array]:
        training = self.step.training
        self.step.eval()
        try:
            with torch.no_grad():
                made = self.step(*(torch.from_numpy(feed[n]) for n in self.step.input_names))
        finally:
            self.step.train(training)
        return fill({name: tensor.numpy() for name, tensor in made.items()}, outputs)


def _signature(
    made: Mapping[str, Array], example: Mapping[str, Array], dynamic: Dynamic
) -> Signature:
    inputs = tuple(
        TensorSpec(name, str(array.dtype), _shape(array, dynamic.get(name, {})))
        for name, array in example.items()
    )
    outputs = tuple(
        TensorSpec(name, str(array.dtype), _shape(array, _same(name, dynamic)))
        for name, array in made.items()
    )
    return Signature(inputs, outputs)


def _same(name: str, dynamic: Dynamic) -> dict[int, Any]:
    return {axis: dynamic[other][at] for axis, (other, at) in VARYING[name].items()}


def _shape(array: Array, dims: Mapping[int, Any]) -> tuple[Any, ...]:
    return tuple(dims.get(axis, size) for axis, size in enumerate(array.shape))
