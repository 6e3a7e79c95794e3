"""Biases of int8 convolutions on OpenVINO, where sizes vary and a constant is joined."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from engines import row
from torch import Tensor, nn

from sdk.compilers import lower
from sdk.parity import TOLERANCE, compare
from sdk.runtimes import open_session
from sdk.signature import Dim
from sdk.target import Target

TARGET = Target.parse("openvino:cpu:int8")


class Patches(nn.Module):
    """Patches of a picture behind a class token, as vision transformers begin."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Conv2d(3, 16, 4, 4)
        self.token = nn.Parameter(torch.randn(1, 1, 16))

    def forward(self, x: Tensor) -> Tensor:
        patches = self.project(x).flatten(2).transpose(1, 2)
        return torch.tanh(torch.cat([self.token.expand(x.shape[0], -1, -1), patches], 1))


def test_each_channel_gets_its_own_bias(tmp_path: Path) -> None:
    """OpenVINO itself adds the first channel's to all: the outputs were 15 % off."""
    row(str(TARGET)).require()
    from sdk.compilers.capture import capture
    from sdk.compilers.quantize import quantize

    torch.manual_seed(0)
    pictures = [torch.randn(2, 3, 16, 16) for _ in range(4)]
    program = capture(Patches().eval(), pictures[0], {"x": {0: Dim("batch", 1, 2, 4)}})
    quantized = quantize(program, [{"x": x.numpy()} for x in pictures])
    build = lower(quantized, TARGET, tmp_path / "built")
    session = open_session(build.file, quantized.signature, TARGET, threads=1)
    feed = {"x": np.random.default_rng(1).normal(size=(3, 3, 16, 16)).astype(np.float32)}
    report = compare(session.run(feed), quantized.reference(feed), TOLERANCE["int8"])
    assert report.ok, report
    assert any(source.module == "project" for source in build.sources.values())
