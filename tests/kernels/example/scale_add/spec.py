"""`edge::scale_add`: x + alpha * y. The smallest kernel there can be; tests build and run it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from sdk.kernels.spec import Case, Tolerance, kernel


def _cases(rng: np.random.Generator) -> Iterator[Case]:
    for shape in [(0, 3), (1,), (7,), (3, 17), (2, 3, 65)]:
        x, y = (torch.from_numpy(rng.standard_normal(shape, np.float32)) for _ in range(2))
        yield Case(f"{'x'.join(map(str, shape))}", (x, y), {"alpha": 0.5})
    x, y = (torch.from_numpy(rng.standard_normal((9, 40), np.float32)) for _ in range(2))
    yield Case("transposed", (x.T, y.T), {"alpha": -2.0})
    yield Case("every other", (x[:, ::2], y[:, 1::2]))
    yield Case("without y", (x, None))
    x[0, :3] = torch.tensor([float("nan"), float("inf"), 1e-42])
    yield Case("not finite", (x, y))


@kernel("edge::scale_add", version=1, sample=_cases, tolerance=Tolerance(rms=1e-6, worst=1e-6))
def scale_add(x: Tensor, y: Tensor | None = None, alpha: float = 1.0) -> Tensor:
    """x + alpha * y, elementwise, of tensors of one shape; without y, x itself."""
    return x.clone() if y is None else x + alpha * y
