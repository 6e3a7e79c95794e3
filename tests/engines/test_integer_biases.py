"""The bias of an int8 layer is a multiple of its products' scale, in the program already."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from engines import row
from torch import nn

from sdk.compilers import lower
from sdk.runtimes import open_session
from sdk.target import Target


def network() -> nn.Sequential:
    """Convolutions, one with a batch norm, whose biases fall between the steps."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, groups=16, bias=False),
        nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 8, 1), nn.ReLU(), nn.Conv2d(8, 8, 1),
        nn.Sigmoid(),
    ).eval()  # fmt: skip


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_engines_agree_with_the_program_to_the_step(engine: str, tmp_path: Path) -> None:
    """With biases between the steps some outputs in a thousand came out a step away."""
    target = Target.parse(f"{engine}:cpu:int8")
    row(str(target)).require()
    from sdk.compilers.capture import capture
    from sdk.compilers.quantize import quantize

    draw = np.random.default_rng(0)
    feeds = [{"input": draw.normal(size=(1, 3, 32, 32)).astype(np.float32)} for _ in range(8)]
    model = network()
    bias = model[0].bias.detach().clone()
    program = capture(model, torch.from_numpy(feeds[0]["input"]))
    quantized = quantize(program, feeds)
    build = lower(quantized, target, tmp_path / "built")
    session = open_session(build.file, quantized.signature, target, threads=1)
    for feed in feeds:
        (got,), (want,) = session.run(feed).values(), quantized.reference(feed).values()
        step = np.diff(np.unique(want)).min()
        assert np.abs(got - want).max() < step / 2
    assert torch.equal(model[0].bias, bias), "the float model keeps its own"
    np.testing.assert_array_equal(
        program.reference(feeds[0])["output"], model(torch.from_numpy(feeds[0]["input"])).detach()
    )
