"""Half precision: what would overflow or lose its place in fp16, and is kept right."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sdk.compilers.capture import capture
from sdk.compilers.dims import Proposed
from sdk.compilers.half import to_half
from sdk.errors import CaptureError
from sdk.signature import Dim

LENGTH = 3000


class Rotary(nn.Module):
    """Features turned by sines of position times frequency, as in decoders."""

    frequency: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("frequency", 1.0 / 100 ** (torch.arange(4) / 4))

    def forward(self, x: Tensor) -> Tensor:
        angles = torch.arange(x.shape[1])[:, None].float() * self.frequency
        return x * torch.cos(angles) + x.flip(-1) * torch.sin(angles)


class Masked(nn.Module):
    """Attention scores to which the least float32 is added where a key is padding."""

    def __init__(self) -> None:
        super().__init__()
        self.score = nn.Linear(4, 4)

    def forward(self, x: Tensor, keep: Tensor) -> Tensor:
        low = torch.finfo(torch.float32).min
        return torch.softmax(self.score(x) + (1 - keep.float()) * low, dim=-1)


class Upcast(nn.Module):
    """A cast that means something in half: the checks that torch.export adds must not trip."""

    def forward(self, x: Tensor) -> Tensor:
        return x.to(torch.float32).square().mean(-1, keepdim=True).rsqrt().to(x.dtype) * x


def test_sines_of_far_positions_are_right() -> None:
    feed = {"x": np.ones((1, LENGTH, 4), np.float32)}
    program = capture(Rotary(), feed)
    half = to_half(program, "fp16", feed)
    error = np.abs(half.reference(feed)["output"] - program.reference(feed)["output"])
    assert error.max() < 2e-3  # in fp16 alone the last position is off by a whole turn


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_mask_of_every_key_gives_no_nan(precision: str) -> None:
    feed = {"x": np.ones((2, 4), np.float32), "keep": np.array([[1, 1, 0, 0], [0, 0, 0, 0]])}
    program = capture(Masked(), feed)
    got = to_half(program, precision, feed).reference(feed)["output"]
    np.testing.assert_allclose(got, program.reference(feed)["output"], atol=2e-2)


def test_cast_within_the_model_is_kept() -> None:
    feed = {"x": np.array([[1, 2, 3, 4]], np.float32)}
    program = capture(Upcast(), feed)
    got = to_half(program, "fp16", feed).reference(feed)["output"]
    np.testing.assert_allclose(got, program.reference(feed)["output"], rtol=2e-3)


def test_half_program_is_made_once() -> None:
    feed = {"x": np.ones((1, 4), np.float32)}
    program = capture(nn.Linear(4, 2), {"input": feed["x"]})
    assert to_half(program, "fp16", {"input": feed["x"]}) is to_half(
        program, "fp16", {"input": feed["x"]}
    )


class Loop(nn.Module):
    """Runs over the sequence in Python: its length is fixed when it is captured."""

    def forward(self, x: Tensor) -> Tensor:
        total = x[:, 0]
        for step in range(1, x.shape[1]):
            total = total * 0.5 + x[:, step]
        return total


def test_model_turns_a_proposed_dim_down() -> None:
    x = torch.randn(1, 5, 3)
    dims = {"x": {0: Dim("batch", 1, 1, 4), 1: Dim("length", 1, 5, 9)}}
    program = capture(Loop(), x, Proposed(dims))
    assert program.signature.inputs[0].shape == (Dim("batch", 1, 1, 4), 5, 3)
    feed = {"x": np.ones((3, 5, 3), np.float32)}
    assert program.reference(feed)["output"].shape == (3, 3)
    with pytest.raises(CaptureError):
        capture(Loop(), x, dims)
