"""Attention in ONNX computes what PyTorch computes, above all for queries with every key masked."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sdk.compilers.capture import capture
from sdk.compilers.onnx_file import write_onnx
from sdk.runtimes import open_session
from sdk.target import Target

Q, K, V = (2, 4, 5, 8), (2, 4, 7, 8), (2, 4, 7, 6)


class Attention(nn.Module):
    """Scaled dot product attention with some settings."""

    def __init__(self, settings: dict[str, Any]) -> None:
        super().__init__()
        self.settings = settings

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, **self.settings)


@pytest.fixture
def on_engine(tmp_path: Path) -> Callable[..., tuple[Any, Any]]:
    """The values of ONNX Runtime and of PyTorch."""

    def run(settings: dict[str, Any], *tensors: Tensor) -> tuple[Any, Any]:
        program = capture(Attention(settings), tensors)
        file = tmp_path / "model.onnx"
        write_onnx(program, file)
        names = ("q", "k", "v", "mask")
        feed = {name: x.numpy() for name, x in zip(names, tensors, strict=False)}
        target = Target.parse("onnxruntime")
        with_engine = open_session(file, program.signature, target, threads=1)
        return with_engine.run(feed)["output"], program.reference(feed)["output"]

    return run


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize(
    ("settings", "shapes"),
    [
        ({}, (Q, K, V)),
        ({"scale": 0.7}, (Q, K, V, (5, 7))),
        ({"is_causal": True}, (Q, K, V)),
        ({"enable_gqa": True}, (Q, (2, 2, 7, 8), (2, 2, 7, 6))),
        ({}, (Q[1:], K[1:], V[1:])),
    ],
    ids=["plain", "float mask", "causal", "grouped heads", "three axes"],
)
def test_attention(
    settings: dict[str, Any],
    shapes: tuple[tuple[int, ...], ...],
    on_engine: Callable[..., tuple[Any, Any]],
) -> None:
    got, want = on_engine(settings, *(draw(*shape) for shape in shapes))
    np.testing.assert_allclose(got, want, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_query_without_keys_gets_zeros(
    dtype: torch.dtype, on_engine: Callable[..., tuple[Any, Any]]
) -> None:
    mask = draw(2, 1, 5, 7) > 0
    mask[:, :, 2] = False
    got, want = on_engine({}, *(draw(*shape).to(dtype) for shape in (Q, K, V)), mask)
    assert not want[:, :, 2].any()
    assert not got[:, :, 2].any()
    np.testing.assert_allclose(got, want, atol=1e-6 if dtype == torch.float32 else 4e-3)
