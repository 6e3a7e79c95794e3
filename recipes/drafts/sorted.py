"""S2D (arXiv:2407.01955): one draft that is trained at all of its exits (sorted fine-tuning)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as nnf
from torch import Tensor

from sdk.compilers.feature_head import output_layer
from sdk.compilers.segments import decoder_layers
from sdk.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def exit_losses(model: PreTrainedModel, tokens: Tensor, exits: Sequence[int]) -> Tensor:
    """[E]: cross-entropy of the next token at each exit; their mean is the paper's loss.

    tokens [B, T]. An exit is the number of layers before it, and ends in the model's own last norm
    and output layer.
    """
    layers = decoder_layers(model)
    if (
        not exits
        or sorted(set(exits)) != list(exits)
        or not 0 < exits[0] <= exits[-1] <= len(layers)
    ):
        raise InputError(
            "The exits do not fit the model.",
            expected=f"rising numbers of layers, 1 to {len(layers)}",
            got=list(exits),
        )
    with _caught([layers[count - 1] for count in exits]) as hidden:
        model.base_model(input_ids=tokens[:, :-1], use_cache=False)
    base: Any = model.base_model
    norm, output = base.norm, output_layer(model)
    want = tokens[:, 1:].flatten()
    return torch.stack([nnf.cross_entropy(output(norm(h)).flatten(0, 1), want) for h in hidden])


def train_sorted(
    model: PreTrainedModel,
    batches: Iterable[Tensor],
    exits: Sequence[int],
    *,
    learning_rate: float = 2e-5,
) -> list[list[float]]:
    """Train `model` in place on batches of tokens [B, T]; the losses at the exits, by step.

    The learning rate is the paper's, for a pre-trained draft.
    """
    optimiser = torch.optim.AdamW(model.parameters(), lr=learning_rate)
    model.train()
    history: list[list[float]] = []
    for tokens in batches:
        losses = exit_losses(model, tokens, exits)
        optimiser.zero_grad()
        losses.mean().backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        history.append(losses.tolist())
    model.train(False)
    return history


@contextlib.contextmanager
def _caught(layers: Sequence[torch.nn.Module]) -> Iterator[list[Tensor]]:
    """The outputs of these layers in the block, in their order."""
    found: list[Tensor] = []

    def keep(_layer: object, _given: object, output: Tensor | tuple[Tensor, ...]) -> None:
        found.append(output if isinstance(output, Tensor) else output[0])

    handles = [layer.register_forward_hook(keep) for layer in layers]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
