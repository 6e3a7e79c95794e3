"""How well a language model foretells texts: nats per token, bits per byte."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

from sdk.recipes.data.tokens import Rows

BATCH = 8


@dataclass(frozen=True)
class Bits:
    """loss: mean nats per token; per_byte: bits per byte of text, which tokenizers share."""

    loss: float
    per_byte: float
    tokens: int
    bytes: int


def bits(model: nn.Module, rows: Rows, lengths: Tensor, *, rows_used: int) -> Bits:
    """Over the first `rows_used` rows; lengths: bytes of each token, int64 [vocabulary]."""
    nats, tokens, size = 0.0, 0, 0
    with torch.inference_mode():
        for start in range(0, rows_used, BATCH):
            inputs, targets = rows.__getitems__(list(range(start, min(start + BATCH, rows_used))))
            logits = model(inputs).flatten(0, 1)
            nats += float(nnf.cross_entropy(logits, targets.flatten(), reduction="sum"))
            tokens += targets.numel()
            size += int(lengths[targets].sum())
    return Bits(nats / tokens, nats / math.log(2) / max(1, size), tokens, size)
