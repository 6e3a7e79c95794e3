"""Random numbers: those of the seed where there is one. Core ML's generator makes others."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from sdk.compilers.mil.operators.arguments import Operator, ints


def _generator(seed: Tensor) -> Generator:
    chosen = Generator()
    if int(seed) < 0:
        chosen.seed()
    else:
        chosen.manual_seed(int(seed))
    return chosen


def random_normal(shape: Tensor, mean: Tensor, stddev: Tensor, seed: Tensor) -> Tensor:
    """Normally distributed."""
    return torch.randn(ints(shape), generator=_generator(seed)) * stddev + mean


def random_uniform(shape: Tensor, low: Tensor, high: Tensor, seed: Tensor) -> Tensor:
    """Uniform between two bounds."""
    return torch.rand(ints(shape), generator=_generator(seed)) * (high - low) + low


OPERATORS: dict[str, Operator] = {
    "random_normal": random_normal,
    "random_uniform": random_uniform,
}
