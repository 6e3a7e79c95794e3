"""Some layers of a causal language model as a step of their own: an early exit, and what goes on.

The first segment takes tokens; each further one takes, as `from_features`, the `features` of the
one before: the raw hidden states behind its last layer. Every segment ends in the model's own norm
and output layer, so each is an exit, and all of them in a row are the model.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from sdk.compilers.causal_lm import FROM, LEAD, Step, unfit
from sdk.errors import InputError
from sdk.parity import TOLERANCE, compare
from sdk.signature import Array

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Layers = tuple[int, int]


class Segment(Step):
    """Layers `first` to `last` (not included), with the features behind them unless it ends."""

    def __init__(self, model: PreTrainedModel, layers: Layers) -> None:
        count = len(decoder_layers(model))
        first, last = layers
        if not 0 <= first < last <= count:
            raise InputError(
                "The model has no such layers.", expected=f"within 0 to {count}", got=layers
            )
        self._fed_width = 0 if first == 0 else model.config.get_text_config().hidden_size
        super().__init__(
            part(model, layers),
            features=last < count,
            first_input=FROM if self._fed_width else LEAD[0],
        )

    def _tapped(self) -> nn.Module:
        return decoder_layers(self.model)[-1]

    def _fed(self, given: Tensor) -> dict[str, Tensor]:
        return {"inputs_embeds": given} if self._fed_width else super()._fed(given)

    def _nothing(self) -> Tensor:
        return torch.zeros(1, 2, self._fed_width) if self._fed_width else super()._nothing()


def decoder_layers(model: PreTrainedModel) -> nn.ModuleList:
    """The model's decoder layers; InputError where they are not where Llama has them."""
    layers = getattr(model.base_model, "layers", None)
    if not isinstance(layers, nn.ModuleList):
        raise unfit(model, "its layers are no list named `layers`")
    return layers


def part(model: PreTrainedModel, layers: Layers) -> PreTrainedModel:
    """A model of its own with only these layers, and the same embedding, norm and output layer."""
    first, last = layers
    whole = decoder_layers(model)
    kept = nn.ModuleList(whole[first:last])
    base = model.base_model
    try:
        base.layers = nn.ModuleList()  # the others are not copied
        made = copy.deepcopy(model)
    finally:
        base.layers = whole
    made.base_model.layers = copy.deepcopy(kept)
    inside: Any
    for inside in made.base_model.layers.modules():
        if hasattr(inside, "layer_idx"):
            inside.layer_idx -= first
    config = made.config.get_text_config()
    config.num_hidden_layers = last - first
    kinds = getattr(config, "layer_types", None)
    if kinds is not None:
        config.layer_types = kinds[first:last]
    for inside in made.modules():
        if hasattr(inside, "config"):
            inside.config = config
    return made


def check_parts(model: PreTrainedModel, layers: Layers, tokens: Array) -> Tensor:
    """[1, W, F]: what goes into these layers for `tokens` [1, W].

    InputError unless the model with the layers in front and these in a row gives the logits of the
    model cut behind them: some models do more between embedding and layers than look a row up.
    """
    first, last = layers
    ids = torch.from_numpy(tokens)
    before = part(model, (0, first))
    caught: list[Tensor] = []
    handle = decoder_layers(before)[-1].register_forward_hook(
        lambda _module, _given, out: caught.append(out if isinstance(out, Tensor) else out[0])
    )
    with torch.no_grad():
        before(input_ids=ids)
        handle.remove()
        got = part(model, layers)(inputs_embeds=caught[0]).logits
        want = part(model, (0, last))(input_ids=ids).logits
    report = compare({"logits": got.numpy()}, {"logits": want.numpy()}, TOLERANCE["fp32"])
    if not report.ok:
        raise unfit(model, f"its layers cannot be run apart: {report}")
    return caught[0]
