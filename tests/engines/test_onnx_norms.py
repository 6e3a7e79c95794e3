"""Root mean square norms on ONNX Runtime: one operator each, and the same numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import sdk


class Norms(nn.Module):
    """Two norms, and an inverse root that is no norm's since two read it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = (nn.Parameter(torch.rand(16) + 0.5) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        for weight in (self.first, self.second):
            x = weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5))
        shared = torch.rsqrt(x.abs() + 1)
        return x * shared + shared


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_norms(engine: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net, x = Norms(), torch.randn(3, 16)
    sdk.compile(net, inputs=x, target=engine, output=tmp_path / "m.edge", threads=1)
    with sdk.load(tmp_path / "m.edge", threads=1) as model:
        np.testing.assert_allclose(model.predict(x.numpy()), net(x).detach(), rtol=1e-5, atol=1e-6)
        kinds = [row.kind for row in model.placement()]
    if engine == "onnxruntime":
        assert kinds.count("SimplifiedLayerNormalization") == 2
        assert kinds.count("Reciprocal") == 1
