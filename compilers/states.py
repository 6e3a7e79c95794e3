"""Models that write to their buffers: each run of a reference begins with the same state."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import nn


class Buffers:
    """The buffers of a module that its runs write to. The first run tells which they are."""

    def __init__(self, module: nn.Module) -> None:
        self._watched = list(module.buffers())

    @contextlib.contextmanager
    def kept(self) -> Iterator[None]:
        """Behind the block they hold what they held before it."""
        before = [(buffer, buffer._version, buffer.clone()) for buffer in self._watched]
        try:
            yield
        finally:
            changed = [(buffer, old) for buffer, was, old in before if buffer._version != was]
            with torch.no_grad():
                for buffer, old in changed:
                    buffer.copy_(old)
        self._watched = [buffer for buffer, _ in changed]
