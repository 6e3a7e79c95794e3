"""A model with one layer that eight bits cannot hold, and a search among its precisions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import sdk
from sdk.search.result import Search

PRECISIONS = ("fp32", "fp16", "bf16", "int8", "w8", "int4", "int2")
FAST_INT8 = {"fp32": 100.0, "fp16": 300.0, "bf16": 300.0, "int8": 50.0}
Tune = Callable[..., Search]


class Fragile(nn.Module):
    """The layer `wide` reads small values beside a large one, which eight bits cannot hold."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.wide, self.last = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        with torch.no_grad():
            self.wide.weight[:, 0] = 0
        self.register_buffer("scale", torch.tensor([1000.0] + [1.0] * 7))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.wide(torch.sigmoid(self.first(x)) * self.scale))


FEEDS = [torch.randn(16, 8, generator=torch.Generator().manual_seed(i)) for i in range(8)]
torch.manual_seed(2)
MODEL = Fragile().eval()


def closeness(predict: Callable[[Any], Any]) -> float:
    """1 minus the largest relative error against PyTorch."""
    with torch.no_grad():
        wants = [MODEL(feed).numpy() for feed in FEEDS]
    errors = [
        np.abs(predict(feed.numpy()) - want).max() / np.abs(want).max()
        for feed, want in zip(FEEDS, wants, strict=True)
    ]
    return 1.0 - float(max(errors))


def search(root: Path, output: Path, **options: Any) -> Search:
    settings = {
        "target": "torch:cpu",
        "inputs": FEEDS[0],
        "calibration": FEEDS,
        "metric": closeness,
        "max_drop": 0.05,
        "cache": root,
        "threads": 1,
        "progress": lambda *_: None,
        **options,
    }
    return sdk.tune(MODEL, output=output, **settings)


def by_precision(found: Search) -> dict[str, list[Any]]:
    rows: dict[str, list[Any]] = {}
    for candidate in found.candidates:
        rows.setdefault(sdk.Target.parse(candidate.target).precision, []).append(candidate)
    return rows


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
