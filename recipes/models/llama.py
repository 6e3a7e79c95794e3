"""A small language model of the Llama family (Touvron et al., "LLaMA", arXiv 2302.13971).

Root mean square norms before each block (Zhang and Sennrich, arXiv 1910.07467), rotary positions
(Su et al., arXiv 2104.09864), gated feed-forward with SiLU (Shazeer, arXiv 2002.05202) and heads
that share keys (Ainslie et al., arXiv 2305.13245). Pairs of rotated channels lie half a head apart,
and parameters have the names, as in Hugging Face's `LlamaForCausalLM`: weights go over unchanged.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

from sdk.errors import InputError


@dataclass(frozen=True, kw_only=True)
class LlamaSize:
    """Everything that the shapes of the weights and the rotation depend on."""

    vocabulary: int
    width: int
    layers: int
    heads: int
    kv_heads: int
    hidden: int
    """Width of the feed-forward part."""
    context: int
    tied: bool = False
    """Whether the output layer shares the weights of the embedding."""
    theta: float = 10000.0
    eps: float = 1e-5

    def __post_init__(self) -> None:
        if self.width % self.heads or self.heads % self.kv_heads or self.head % 2:
            raise InputError(
                "The sizes of the language model do not fit together.",
                expected="width = heads x an even number, and heads = kv_heads x a number",
                got=f"width {self.width}, heads {self.heads}, kv_heads {self.kv_heads}",
            )

    @property
    def head(self) -> int:
        """Width of one head."""
        return self.width // self.heads


class RMSNorm(nn.Module):
    """x / rms(x) * weight, over the last axis."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Any shape whose last axis is `width`."""
        return nnf.rms_norm(x, (x.shape[-1],), self.weight, self.eps)


class Attention(nn.Module):
    """Causal self-attention; each of `kv_heads` keys serves heads / kv_heads queries."""

    def __init__(self, size: LlamaSize) -> None:
        super().__init__()
        self.size = size
        shared = size.kv_heads * size.head
        self.q_proj = nn.Linear(size.width, size.width, bias=False)
        self.k_proj = nn.Linear(size.width, shared, bias=False)
        self.v_proj = nn.Linear(size.width, shared, bias=False)
        self.o_proj = nn.Linear(size.width, size.width, bias=False)

    def forward(self, x: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
        """x [B, T, width], rotation: cosines and sines [T, head]."""
        q, k, v = (
            part(x).unflatten(2, (-1, self.size.head)).transpose(1, 2)
            for part in (self.q_proj, self.k_proj, self.v_proj)
        )
        q, k = rotate(q, *rotation), rotate(k, *rotation)
        mixed = nnf.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        result: Tensor = self.o_proj(mixed.transpose(1, 2).flatten(2))
        return result


class FeedForward(nn.Module):
    """down(silu(gate(x)) * up(x))."""

    def __init__(self, size: LlamaSize) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(size.width, size.hidden, bias=False)
        self.up_proj = nn.Linear(size.width, size.hidden, bias=False)
        self.down_proj = nn.Linear(size.hidden, size.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, T, width]."""
        result: Tensor = self.down_proj(nnf.silu(self.gate_proj(x)) * self.up_proj(x))
        return result


class Block(nn.Module):
    """Attention and feed-forward, each behind a norm and added to what came in."""

    def __init__(self, size: LlamaSize) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(size.width, size.eps)
        self.self_attn = Attention(size)
        self.post_attention_layernorm = RMSNorm(size.width, size.eps)
        self.mlp = FeedForward(size)

    def forward(self, x: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
        """x [B, T, width]."""
        x = x + self.self_attn(self.input_layernorm(x), rotation)
        result: Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return result


class Backbone(nn.Module):
    """Embedding, blocks and the last norm."""

    def __init__(self, size: LlamaSize) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(size.vocabulary, size.width)
        self.layers = nn.ModuleList(Block(size) for _ in range(size.layers))
        self.norm = RMSNorm(size.width, size.eps)


class Llama(nn.Module):
    """Tokens [B, T] -> logits [B, T, vocabulary]."""

    def __init__(self, size: LlamaSize) -> None:
        super().__init__()
        self.size = size
        self.model = Backbone(size)
        self.lm_head = nn.Linear(size.width, size.vocabulary, bias=False)
        self.apply(_initialise)
        with torch.no_grad():  # what is added to the residual stream grows with the layers
            for name, weight in self.named_parameters():
                if name.endswith(("o_proj.weight", "down_proj.weight")):
                    weight.div_(math.sqrt(2 * size.layers))
        if size.tied:
            self.lm_head.weight = self.model.embed_tokens.weight

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits of what follows each token; at most `context` tokens."""
        x = self.model.embed_tokens(tokens)
        rotation = rotations(self.size, tokens.shape[1], x.device)
        for block in self.model.layers:
            x = block(x, rotation)
        logits: Tensor = self.lm_head(self.model.norm(x))
        return logits


def stacked(model: Llama, layers: int) -> Llama:
    """`model` with its layers repeated, in order, until there are `layers`.

    Depth is not what the first steps need, and a step of few layers is cheap ("G_stack" of Du et
    al., "Stacking Your Transformers", arXiv 2405.15319, after Gong et al., ICML 2019).
    """
    grown = Llama(replace(model.size, layers=layers))
    weights = model.state_dict()
    for index in range(layers):
        source = f"model.layers.{index % model.size.layers}."
        for name in [name for name in weights if name.startswith(source)]:
            weights[f"model.layers.{index}.{name.removeprefix(source)}"] = weights[name]
    grown.load_state_dict(weights)
    return grown


def rotations(
    size: LlamaSize, length: int, device: torch.device | None = None
) -> tuple[Tensor, Tensor]:
    """Cosines and sines [length, head] of position times theta^(-2i / head)."""
    powers = torch.arange(0, size.head, 2, device=device, dtype=torch.float32) / size.head
    angles = torch.outer(torch.arange(length, device=device).float(), size.theta**-powers)
    angles = torch.cat([angles, angles], -1)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """Turn each pair of channels (i, i + head / 2) of x [B, heads, T, head] by its angle."""
    first, second = x.chunk(2, -1)
    return x * cosines + torch.cat([-second, first], -1) * sines


def _initialise(module: nn.Module) -> None:
    if isinstance(module, (nn.Linear, nn.Embedding)):
        nn.init.normal_(module.weight, std=0.02)
