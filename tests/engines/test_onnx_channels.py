"""int8 convolutions with three input channels get a fourth on ONNX Runtime, and the same values."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import torch
from torch import Tensor, nn
from torch.nn import functional as nnf

from sdk.compilers import lower
from sdk.compilers.capture import capture
from sdk.compilers.quantize import quantize
from sdk.runtimes import open_session
from sdk.target import Target

IMAGES = np.random.default_rng(0).normal(0.4, 1, (4, 3, 12, 12)).astype(np.float32)


class Stems(nn.Module):
    """Two stems of the same picture, and layers that have nothing to fill or gain nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3, 2, padding=1)
        self.second = nn.Conv2d(3, 6, 3, 2, padding=1)
        self.pointwise = nn.Conv2d(6, 12, 1)
        self.last = nn.Conv2d(12, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Both stems, added, and the rest."""
        x = nnf.relu(self.first(x)) + nnf.relu(self.second(x))
        return self.last(nnf.relu(self.pointwise(x)))


def test_stems_are_filled_and_keep_their_values(tmp_path: Path) -> None:
    torch.manual_seed(0)
    program = quantize(capture(Stems().eval(), {"x": IMAGES}), [{"x": IMAGES}])
    target = Target("onnxruntime", precision="int8")
    file = lower(program, target, tmp_path / "build").file
    graph = onnx.load(file).graph
    stored = {tensor.name: list(tensor.dims) for tensor in graph.initializer}
    maker = {name: node for node in graph.node for name in node.output}
    convs = [node for node in graph.node if node.op_type == "Conv"]
    shapes = [stored[maker[conv.input[1]].input[0]] for conv in convs]
    assert shapes == [[6, 4, 3, 3], [6, 4, 3, 3], [12, 6, 1, 1], [4, 12, 3, 3]]
    session = open_session(file, program.signature, target, threads=1)
    got, want = session.run({"x": IMAGES}), program.reference({"x": IMAGES})
    np.testing.assert_allclose(got["output"], want["output"], atol=0.02 * np.ptp(want["output"]))
    read = {name for node in graph.node for name in node.input} | {"output"}
    assert all(read & {*node.output} for node in graph.node)
