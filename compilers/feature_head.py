"""A draft head that goes on from the target's hidden states: EAGLE's, with FSPAD's two changes.

EAGLE (arXiv:2401.15077): one decoder layer reads the embedding of token t + 1 beside the target's
hidden state f_t behind token t (before the output layer), and predicts f_{t+1}; the target's own
output layer makes logits of it. FSPAD (arXiv:2408.15562) adds

- *feature sampling*: the token picks out which feature it was, in a wide gated space,
  h = fc([e; f]), h + W_down(silu(W_gate e) * (W_up norm(h)));
- *partial alignment*: the layer ends in two vectors. One makes the logits, the other is held to
  the target's feature and is what the next step reads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

from sdk.compilers.capture import Named
from sdk.compilers.causal_lm import FROM, LEAD, Pass
from sdk.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Queries [B, heads, W, D], keys and values [B, groups, W, D] to [B, W, heads, D]."""
THETA = 10000.0


@dataclass(frozen=True, kw_only=True)
class HeadSize:
    """Shapes of a head; `of` takes them from the target."""

    width: int
    heads: int
    groups: int
    hidden: int
    context: int
    feature_sampling: bool = True
    partial_alignment: bool = True

    @classmethod
    def of(cls, model: PreTrainedModel, *, sampling: bool = True, partial: bool = True) -> HeadSize:
        """The target's; GPT-2's names are mapped by its configuration."""
        config = model.config.get_text_config()
        heads = config.num_attention_heads
        return cls(
            width=config.hidden_size,
            heads=heads,
            groups=getattr(config, "num_key_value_heads", None) or heads,
            hidden=getattr(config, "intermediate_size", None) or 4 * config.hidden_size,
            context=config.max_position_embeddings,
            feature_sampling=sampling,
            partial_alignment=partial,
        )


class FeatureHead(nn.Module):
    """Tokens t + 1 and features t -> what predicts, and what stands in for, features t + 1.

    Embedding and output layer are the target's, and are not trained.
    """

    def __init__(self, target: PreTrainedModel, size: HeadSize) -> None:
        super().__init__()
        if size.width % size.heads or size.heads % size.groups or (size.width // size.heads) % 2:
            raise InputError("The sizes of the feature head do not fit together.", got=size)
        self.size = size
        width, shared = size.width, size.width // size.heads * size.groups
        self.embedding = _frozen(target.get_input_embeddings())
        self.output = _frozen(output_layer(target))
        self.join = nn.Linear(2 * width, width)
        if size.feature_sampling:
            self.sample_norm = nn.RMSNorm(width, eps=1e-6)
            self.sample_gate, self.sample_up, self.sample_down = _gated(size, width)
        self.q_proj = nn.Linear(width, width, bias=False)
        self.k_proj = nn.Linear(width, shared, bias=False)
        self.v_proj = nn.Linear(width, shared, bias=False)
        self.o_proj = nn.Linear(width, width, bias=False)
        self.norm = nn.RMSNorm(width, eps=1e-6)
        self.gate, self.up, self.down = _gated(size, width * (1 + size.partial_alignment))

    def forward(
        self, tokens: Tensor, features: Tensor, positions: Tensor, attend: Attend | None = None
    ) -> tuple[Tensor, Tensor]:
        """[B, W], [B, W, F], [B, W] -> (predicting, regressing) features, each [B, W, F].

        `attend` is causal attention over what is given where it is left out.
        """
        h = self._joined(self.embedding(tokens), features)
        h = h + self._attention(h, positions, attend or _causal)
        normed = self.norm(h)
        out = self.down(nnf.silu(self.gate(normed)) * self.up(normed))
        if not self.size.partial_alignment:
            return h + out, h + out
        predicting, regressing = out.chunk(2, -1)
        return h + predicting, h + regressing

    def trainable(self) -> list[nn.Parameter]:
        """Without the target's parts."""
        return [weight for weight in self.parameters() if weight.requires_grad]

    def _joined(self, embedded: Tensor, features: Tensor) -> Tensor:
        h: Tensor = self.join(torch.cat([embedded, features], -1))
        if not self.size.feature_sampling:
            return h
        picked = nnf.silu(self.sample_gate(embedded)) * self.sample_up(self.sample_norm(h))
        result: Tensor = h + self.sample_down(picked)
        return result

    def _attention(self, h: Tensor, positions: Tensor, attend: Attend) -> Tensor:
        depth = self.size.width // self.size.heads
        q, k, v = (
            part(h).unflatten(2, (-1, depth)).transpose(1, 2)
            for part in (self.q_proj, self.k_proj, self.v_proj)
        )
        mixed = attend(rotate(q, positions), rotate(k, positions), v)
        result: Tensor = self.o_proj(mixed.reshape(*h.shape[:2], -1))
        return result


class HeadStep(Named):
    """A head behind a cache, with the inputs and outputs of a step and features on both sides."""

    def __init__(self, head: FeatureHead) -> None:
        past = ("past_keys_0", "past_values_0")
        super().__init__((LEAD[0], FROM, *LEAD[1:], *past), "FeatureHead")
        self.head = head

    def forward(self, *tensors: Tensor) -> dict[str, Tensor]:
        """The tensors in the order of `input_names`."""
        tokens, features, positions, rows, past_mask, new_mask, keys, values = tensors
        run = Pass(positions, past_mask, new_mask, [(keys, values)])

        def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            run.update(k, v, 0)
            return run.attend(q, q.shape[-1] ** -0.5, None, None)

        predicting, regressing = self.head(tokens, features, positions, attend)
        logits = self.head.output(predicting[0].index_select(0, rows))
        made = (torch.stack(part) for part in zip(*run.made, strict=True))
        outputs = dict(zip(("keys", "values"), made, strict=True))
        return {"logits": logits, **outputs, "features": regressing.squeeze(0)}


def rotate(x: Tensor, positions: Tensor) -> Tensor:
    """Rotary positions (arXiv:2104.09864) on x [B, heads, W, D]; pairs lie half a head apart."""
    depth = x.shape[-1]
    powers = torch.arange(0, depth, 2, dtype=torch.float32, device=x.device) / depth
    angles = positions[..., None].float() * THETA**-powers
    angles = torch.cat([angles, angles], -1)[:, None]
    first, second = x.chunk(2, -1)
    return x * angles.cos() + torch.cat([-second, first], -1) * angles.sin()


def _causal(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    mixed = nnf.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    return mixed.transpose(1, 2)


def _gated(size: HeadSize, out: int) -> Sequence[nn.Linear]:
    """Gate, up and down projections without biases."""
    into = [nn.Linear(size.width, size.hidden, bias=False) for _ in range(2)]
    return *into, nn.Linear(size.hidden, out, bias=False)


def output_layer(model: Any) -> nn.Module:
    """What makes logits of hidden states."""
    found: nn.Module = model.get_output_embeddings()
    return found


def _frozen(layer: nn.Module | None) -> nn.Module:
    """A copy that no optimiser touches."""
    weight = getattr(layer, "weight", None)
    if not isinstance(layer, (nn.Embedding, nn.Linear)) or not isinstance(weight, Tensor):
        raise InputError(
            "The target has no embedding and output layer of the usual kinds.",
            expected="nn.Embedding and nn.Linear",
            got=type(layer).__name__,
        )
    kept = nn.Embedding(*weight.shape) if isinstance(layer, nn.Embedding) else _linear(layer)
    kept.load_state_dict(layer.state_dict())
    return kept.requires_grad_(False)


def _linear(layer: nn.Linear) -> nn.Linear:
    return nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None)
