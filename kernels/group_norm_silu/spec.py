"""`edge::group_norm_silu`: group norm, affine and SiLU in one pass over a U-Net's activations."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from sdk.kernels.spec import Case, Tolerance, kernel

SHAPES = (
    (1, 4, 5, 7), (2, 6, 3, 11), (1, 32, 16, 16), (3, 8, 33), (1, 4, 2, 3, 5), (2, 4), (1, 2, 3000),
    (0, 4, 5, 5), (2, 4, 0, 3), (1, 2, 21008),
)  # fmt: skip


def _cases(rng: np.random.Generator) -> Iterator[Case]:
    for shape in SHAPES:
        yield _case(rng, shape, torch.float32, groups=2)
        yield _case(rng, shape, torch.bfloat16, groups=1)
    yield _case(rng, (2, 12, 4, 9), torch.float32, groups=12, silu=False)
    last = _case(rng, (2, 24, 9, 10), torch.float32, groups=4)
    x, weight, _ = last.tensors
    assert x is not None
    assert weight is not None
    yield _with(last, "channels last", x.to(memory_format=torch.channels_last))
    yield _with(last, "transposed", x.transpose(2, 3))
    yield _with(last, "far from zero", x + 1000)
    yield _with(last, "no variance", torch.full_like(x, 0.1))
    for value in (float("nan"), float("inf"), float("-inf"), 1e-42, 1e18):
        one = x.clone()
        one[1, 3, 2, 2] = value
        yield _with(last, f"with {value}", one)
    yield _with(last, "large", x, weight=weight * 200)


def _case(
    rng: np.random.Generator,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    *,
    groups: int,
    silu: bool = True,
) -> Case:
    x, weight, bias = (
        torch.from_numpy(rng.standard_normal(s, np.float32)).to(dtype)
        for s in (shape, shape[1:2], shape[1:2])
    )
    name = f"{'x'.join(map(str, shape))} {dtype}"
    return Case(name, (x, weight, bias), {"groups": groups, "silu": silu}, BF16.get(dtype))


def _with(case: Case, name: str, x: Tensor, weight: Tensor | None = None) -> Case:
    tensors = (x, case.tensors[1] if weight is None else weight, case.tensors[2])
    return Case(name, tensors, case.attributes, FAR if name == "far from zero" else None)


BF16 = {torch.bfloat16: Tolerance(rms=4e-3, worst=6e-3)}
FAR = Tolerance(rms=1e-4, worst=2e-4)
"""A float of 1,000 has steps of 6e-5."""


@kernel(
    "edge::group_norm_silu", version=1, sample=_cases, tolerance=Tolerance(rms=1e-6, worst=3e-6)
)
def group_norm_silu(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    groups: int = 32,
    eps: float = 1e-5,
    silu: bool = True,
) -> Tensor:
    """SiLU (Elfwing et al. 2018) of the group norm (Wu and He 2018) of x [N, C, ...], same shape.

    weight, bias [C]; `groups` divides C. Of float32 or bfloat16; statistics are never in bfloat16.
    Without `silu` it is the group norm alone.
    """
    wide = x.float() if x.dtype == torch.bfloat16 else x
    # group_norm itself refuses groups of one value, and no values at all
    grouped = wide.reshape(x.shape[0], groups, x.shape[1] // groups, x[0:1, 0:1].numel())
    centred = grouped - grouped.mean((2, 3), keepdim=True)
    variance = (centred * centred).mean((2, 3), keepdim=True)
    shape = [1, x.shape[1], *(1 for _ in x.shape[2:])]
    normal = (centred * torch.rsqrt(variance + eps)).reshape(x.shape)
    scaled = normal * weight.to(wide.dtype).reshape(shape) + bias.to(wide.dtype).reshape(shape)
    result: Tensor = F.silu(scaled) if silu else scaled
    return result.to(x.dtype).contiguous()
