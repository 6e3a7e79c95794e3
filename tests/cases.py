"""The rows of the parity tests: small models that together cover what real ones are made of."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sdk.signature import Dim

Generator = torch.Generator
BATCH = Dim("batch", 1, 2, 6)
LENGTH = Dim("length", 2, 5, 12)


@dataclass(frozen=True, eq=False)
class Case:
    """A model, and inputs drawn by a generator and the size of its dynamic dims."""

    name: str
    build: Callable[[], nn.Module]
    draw: Callable[[Generator, int], Any]
    dynamic: Mapping[str, Mapping[int, Dim]] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.name

    def model(self) -> nn.Module:
        """The model, with weights that depend on the case's name only."""
        torch.manual_seed(zlib.crc32(self.name.encode()))
        return self.build().eval()

    def inputs(self, index: int) -> Any:
        """The index-th inputs: always the same, each another, with other sizes where they vary."""
        seed = zlib.crc32(f"{self.name}/{index}".encode())
        return self.draw(torch.Generator().manual_seed(seed), 2 + index % 4)


def image(channels: int, size: int) -> Callable[[Generator, int], Tensor]:
    """Draws two pictures, N x C x H x W."""
    return lambda g, _: torch.randn(2, channels, size, size, generator=g)


def vector(width: int) -> Callable[[Generator, int], Tensor]:
    """Draws N x width; N is the dynamic size."""
    return lambda g, n: torch.randn(n, width, generator=g)


def clip(*sizes: int) -> Callable[[Generator, int], Tensor]:
    """Draws two samples of a fixed shape."""
    return lambda g, _: torch.randn(2, *sizes, generator=g)


def sequence(width: int) -> Callable[[Generator, int], Tensor]:
    """Draws 2 x length x width; length is the dynamic size."""
    return lambda g, n: torch.randn(2, n, width, generator=g)


class SqueezeExcite(nn.Module):
    """Scales channels by what global pooling sees, as in MobileNetV3."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, channels // 2, 1)
        self.fc2 = nn.Conv2d(channels // 2, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        scale = F.relu(self.fc1(F.adaptive_avg_pool2d(x, 1)))
        return x * F.hardsigmoid(self.fc2(scale))


def mobile_block(channels: int = 8, width: int = 16) -> nn.Sequential:
    """Expand, depthwise, squeeze-excite, project: MobileNetV3's block."""
    return nn.Sequential(
        nn.Conv2d(channels, width, 1, bias=False),
        nn.BatchNorm2d(width),
        nn.Hardswish(),
        nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False),
        nn.BatchNorm2d(width),
        nn.Hardswish(),
        SqueezeExcite(width),
        nn.Conv2d(width, channels, 1, bias=False),
        nn.BatchNorm2d(channels),
    )


class Residual(nn.Module):
    """x + f(x), and a classifier behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head((x + self.body(x)).mean((2, 3)))


class Attention(nn.Module):
    """Pre-norm self-attention over N x length x width."""

    def __init__(self, width: int = 16, heads: int = 2) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        n, length, width = x.shape
        split = self.qkv(self.norm(x)).reshape(n, length, 3, self.heads, width // self.heads)
        q, k, v = split.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(q, k, v)
        return x + self.out(mixed.transpose(1, 2).reshape(n, length, width))


class Masked(nn.Module):
    """Attention with an added mask, whose hidden places stand for minus infinity, and its mean."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(width, width) for _ in range(3))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        bias = torch.where(mask[:, None] > 0, 0.0, torch.finfo(x.dtype).min)
        weights = (self.q(x) @ self.k(x).transpose(1, 2) / 4 + bias).softmax(-1)
        return (x + weights @ self.v(x)).mean(1)


class Recurrent(nn.Module):
    """An LSTM or GRU and its last state through a linear layer."""

    def __init__(self, kind: type[nn.LSTM] | type[nn.GRU]) -> None:
        super().__init__()
        self.cell = kind(6, 8, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.cell(x)[0][:, -1])


class Tied(nn.Module):
    """Token ids to logits with one matrix for embedding and output, as language models tie them."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 8)
        self.mix = nn.Linear(8, 8)
        self.head = nn.Linear(8, 20, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(torch.tanh(self.mix(self.embed(ids))))


class Several(nn.Module):
    """Two inputs to a mapping that holds a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(4, 5), nn.Linear(6, 5)

    def forward(self, query: Tensor, key: Tensor) -> dict[str, Any]:
        a, b = self.left(query), self.right(key)
        return {"score": (a * b).sum(-1), "parts": (torch.relu(a), torch.sigmoid(b))}


class Optional(nn.Module):
    """A third input that has a default, given by keyword."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor, scale: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
        y = self.layer(x) if scale is None else self.layer(x) * scale
        return y if bias is None else y + bias


class Echo(nn.Module):
    """An input returned as it is, and one tensor returned twice."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        y = self.layer(x)
        return x, y, y


class Scalar(nn.Module):
    """A number for the whole batch."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x).square().mean()


class Buffered(nn.Module):
    """Normalises by its buffers, one of which is not in the state dict."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.randn(4))
        self.register_buffer("std", torch.rand(4) + 0.5, persistent=False)
        self.layer = nn.Linear(4, 3)
        self.offset = torch.tensor([0.25])

    def forward(self, x: Tensor) -> Tensor:
        return self.layer((x - self.mean) / self.std) + self.offset


def _ids(g: Generator, n: int) -> Tensor:
    return torch.randint(0, 20, (2, n), generator=g)


def _two(g: Generator, _: int) -> tuple[Tensor, Tensor]:
    return torch.randn(3, 4, generator=g), torch.randn(3, 6, generator=g)


def _masked(g: Generator, _: int) -> dict[str, Tensor]:
    mask = (torch.arange(6) < torch.tensor([[6], [4]])).long()
    return {"x": torch.randn(2, 6, 16, generator=g), "mask": mask}


def _gap(g: Generator, _: int) -> dict[str, Tensor]:
    return {"x": torch.randn(3, 4, generator=g), "bias": torch.randn(4, generator=g)}


CASES = (
    Case("mlp", lambda: nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 4)), vector(8),
         {"input": {0: BATCH}}),
    Case("conv_bn_relu", lambda: nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8),
                                               nn.ReLU(), nn.Conv2d(8, 4, 3)), image(3, 12)),
    Case("mobile_block", mobile_block, image(8, 10)),
    Case("channels_last", lambda: mobile_block().to(memory_format=torch.channels_last),
         image(8, 10)),
    Case("residual", Residual, image(4, 8)),
    Case("conv_transpose", lambda: nn.Sequential(nn.ConvTranspose2d(4, 6, 3, 2, 1, 1), nn.ReLU6(),
                                                 nn.Conv2d(6, 2, 1)), image(4, 6)),
    Case("group_norm", lambda: nn.Sequential(nn.Conv2d(4, 8, 3), nn.GroupNorm(2, 8), nn.SiLU(),
                                             nn.Conv2d(8, 3, 1)), image(4, 8)),
    Case("conv1d", lambda: nn.Sequential(nn.Conv1d(16, 8, 3, padding=1), nn.LeakyReLU(),
                                         nn.MaxPool1d(2), nn.Flatten(), nn.Linear(32, 3)),
         clip(16, 8)),
    Case("upsample", lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.Upsample(scale_factor=2,
         mode="bilinear"), nn.Conv2d(4, 2, 1)), image(3, 8)),
    Case("attention", Attention, sequence(16), {"x": {1: LENGTH}}),
    Case("masked", Masked, _masked),
    Case("worded_padding", lambda: nn.Sequential(
        nn.Conv2d(3, 8, 3, padding="same"), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 4, 3, padding="valid")), image(3, 8)),
    Case("lstm", lambda: Recurrent(nn.LSTM), clip(7, 6)),
    Case("gru", lambda: Recurrent(nn.GRU), clip(7, 6)),
    Case("tied_weights", Tied, _ids, {"ids": {1: LENGTH}}),
    Case("several", Several, _two),
    Case("named_inputs", Optional, _gap),
    Case("echo", Echo, vector(4), {"x": {0: BATCH}}),
    Case("scalar", Scalar, vector(4), {"x": {0: BATCH}}),
    Case("buffers", Buffered, vector(4), {"x": {0: BATCH}}),
)  # fmt: skip

CASE_NAMES = (
    "mlp", "conv_bn_relu", "mobile_block", "channels_last", "residual", "conv_transpose",
    "group_norm", "conv1d", "upsample", "attention", "masked", "worded_padding",
    "lstm", "gru", "tied_weights", "several",
    "named_inputs", "echo", "scalar", "buffers",
)  # fmt: skip
