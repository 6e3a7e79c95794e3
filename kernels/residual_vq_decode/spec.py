"""`edge::residual_vq_decode`: from codes of a residual vector quantizer to vectors.

The sum of the chosen vectors, one of each codebook (Zeghidour et al., SoundStream,
arXiv:2107.03312, section III-C); the other direction is `edge::residual_vq`.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from sdk.kernels.spec import Case, Tolerance, kernel


def _cases(rng: np.random.Generator) -> Iterator[Case]:
    for rows, books, codes, width in [
        ((0,), 2, 4, 3), ((), 3, 5, 7), ((3,), 0, 4, 5), ((3,), 2, 3, 0), ((6,), 1, 1, 1),
        ((2, 9), 8, 50, 33), ((40,), 4, 100, 128),
    ]:  # fmt: skip
        picked = torch.from_numpy(rng.integers(0, codes, (*rows, books)))
        vectors = torch.from_numpy(rng.standard_normal((books, codes, width), np.float32))
        yield Case(
            f"{'x'.join(map(str, rows))} rows, {books} of {codes}x{width}", (picked, vectors)
        )
    vectors = vectors.clone()
    vectors[1, picked[2, 1], 4] = torch.nan
    yield Case("NaN", (picked, vectors))


@kernel(
    "edge::residual_vq_decode", version=1, sample=_cases, tolerance=Tolerance(rms=1e-6, worst=1e-6)
)
def residual_vq_decode(codes: Tensor, codebooks: Tensor) -> Tensor:
    """The vectors [..., D] that int64 codes [..., Q] stand for, with codebooks [Q, K, D]."""
    total = codebooks.new_zeros((*codes.shape[:-1], codebooks.shape[2]))
    for book, codebook in enumerate(codebooks.unbind(0)):
        chosen = codebook.index_select(0, codes[..., book].reshape(-1))
        total = total + chosen.reshape(total.shape)
    return total
