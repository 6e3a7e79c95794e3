"""`edge::residual_vq`: codes of vectors by a residual vector quantizer.

Each codebook quantizes what the ones before it left (Zeghidour et al., SoundStream,
arXiv:2107.03312, algorithm 1; DM-Codec, arXiv:2410.15017, uses it). The nearest vector is the one
with the largest r . c - |c|^2 / 2.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from sdk.kernels.spec import Case, Tolerance, kernel


def _cases(rng: np.random.Generator) -> Iterator[Case]:
    for shape, books, codes in [
        ((0, 3), 2, 4), ((1,), 1, 1), ((3, 5), 0, 4), ((3, 0), 2, 3), ((7,), 3, 9),
        ((5, 17), 2, 33), ((2, 9, 64), 4, 70), ((1, 31), 3, 100), ((29, 96), 3, 50),
        ((300, 8), 2, 37), ((13, 130), 2, 64), ((9, 12), 3, 300),
    ]:  # fmt: skip
        x, codebooks = example(rng, shape, books, codes)
        yield Case(f"{'x'.join(map(str, shape))}, {books} of {codes}", (x, codebooks))
    x, codebooks = example(rng, (20, 24), 3, 40)
    codebooks[:, 20:] = codebooks[:, :20]
    yield Case("equal vectors", (x, codebooks))
    broken, bad = x.clone(), codebooks.clone()
    broken[3, 2], broken[5, 1], bad[1, 7, 3] = torch.nan, torch.inf, torch.nan
    yield Case("NaN in the codebook", (x, bad))
    yield Case("NaN", (broken, codebooks))


def example(
    rng: np.random.Generator, shape: tuple[int, ...], books: int, codes: int
) -> tuple[Tensor, Tensor]:
    """Values on a grid, of which all sums are exact, so that equal distances are equal."""
    x = torch.from_numpy(rng.integers(-12, 13, shape).astype(np.float32) / 8)
    scale = 2.0 ** -np.arange(books)[:, None, None]
    grid = rng.integers(-6, 7, (books, codes, shape[-1])) / 8 * np.maximum(scale, 0.25)
    return x, torch.from_numpy(grid.astype(np.float32))


@kernel("edge::residual_vq", version=1, sample=_cases, tolerance=Tolerance(rms=1e-6, worst=1e-6))
def residual_vq(x: Tensor, codebooks: Tensor) -> tuple[Tensor, Tensor]:
    """Codes, and the vectors that they stand for.

    x: [..., D]
    codebooks: [Q, K, D]

    Returns int64 [..., Q] and [..., D]. Of equally near vectors the first is taken; one that is
    NaN, or at a distance that is NaN, only where there is no other, and then the first.
    """
    residual, total, codes = x, torch.zeros_like(x), []
    for codebook in codebooks.unbind(0):
        scores = residual @ codebook.T - (codebook * codebook).sum(-1) / 2
        scores = torch.where(scores.isnan(), -torch.inf, scores)
        code = scores.argmax(-1)
        chosen = codebook.index_select(0, code.reshape(-1)).reshape(x.shape)
        residual, total = residual - chosen, total + chosen
        codes.append(code)
    if not codes:
        return torch.zeros((*x.shape[:-1], 0), dtype=torch.int64, device=x.device), total
    return torch.stack(codes, -1), total
