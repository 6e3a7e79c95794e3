"""Predictions and accuracy of modules, and of anything that is called as one."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from sdk.signature import Array

BATCH = 250


def logits(
    model: nn.Module, pixels: Tensor, normalise: Callable[[Tensor], Tensor], *, batch: int = BATCH
) -> Tensor:
    """The model's outputs in eval mode: uint8 pictures N x H x W x 3 -> float32 N x classes."""
    device = next(model.parameters()).device
    model.eval()
    with torch.inference_mode():
        parts = [
            model(normalise(part.to(device))).float().cpu() for part in torch.split(pixels, batch)
        ]
    return torch.cat(parts).clone()


def accuracy(scores: Array | Tensor, labels: Array | Tensor) -> float:
    """Share of rows whose largest score is at the label."""
    best = np.asarray(scores).argmax(1)
    return float((best == np.asarray(labels)).mean())


def predicted(predict: Callable[[Array], Array], inputs: Array, *, batch: int) -> Array:
    """A compiled model's outputs over many inputs, `batch` at a time."""
    parts = [predict(inputs[start : start + batch]) for start in range(0, len(inputs), batch)]
    return np.concatenate(parts)
