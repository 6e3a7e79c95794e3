"""MobileNetV3-small and -large (Howard et al., 2019, arXiv 1905.02244, tables 1 and 2).

Layers carry torchvision's names (`features.0.0.weight`, `classifier.3.bias`), so that a public
checkpoint loads with `load_state_dict`. For images much smaller than 224 pixels, `stem_stride=1`
keeps the resolution in the first layer: our reading, the paper has no such variant.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn

NORM = partial(nn.BatchNorm2d, eps=1e-3, momentum=1e-2)


@dataclass(frozen=True, slots=True)
class Block:
    """One row of the paper's tables: an inverted residual ("bneck")."""

    kernel: int
    expanded: int
    out: int
    squeeze: bool
    hardswish: bool
    stride: int


# kernel, expansion size, #out, SE, HS (else ReLU), stride
SMALL = tuple(
    Block(*row)
    for row in (
        (3, 16, 16, True, False, 2),
        (3, 72, 24, False, False, 2),
        (3, 88, 24, False, False, 1),
        (5, 96, 40, True, True, 2),
        (5, 240, 40, True, True, 1),
        (5, 240, 40, True, True, 1),
        (5, 120, 48, True, True, 1),
        (5, 144, 48, True, True, 1),
        (5, 288, 96, True, True, 2),
        (5, 576, 96, True, True, 1),
        (5, 576, 96, True, True, 1),
    )
)
LARGE = tuple(
    Block(*row)
    for row in (
        (3, 16, 16, False, False, 1),
        (3, 64, 24, False, False, 2),
        (3, 72, 24, False, False, 1),
        (5, 72, 40, True, False, 2),
        (5, 120, 40, True, False, 1),
        (5, 120, 40, True, False, 1),
        (3, 240, 80, False, True, 2),
        (3, 200, 80, False, True, 1),
        (3, 184, 80, False, True, 1),
        (3, 184, 80, False, True, 1),
        (3, 480, 112, True, True, 1),
        (3, 672, 112, True, True, 1),
        (5, 672, 160, True, True, 2),
        (5, 960, 160, True, True, 1),
        (5, 960, 160, True, True, 1),
    )
)


def mobilenet_v3_small(classes: int = 1000, **options: Any) -> MobileNetV3:
    """2.5 million parameters at 1,000 classes."""
    return MobileNetV3(SMALL, last=1024, classes=classes, **options)


def mobilenet_v3_large(classes: int = 1000, **options: Any) -> MobileNetV3:
    """5.5 million parameters at 1,000 classes."""
    return MobileNetV3(LARGE, last=1280, classes=classes, **options)


class MobileNetV3(nn.Module):
    """Images N x 3 x H x W to logits N x `classes`.

    width: multiplies all channel counts, rounded to multiples of 8.
    dropout: probability before the last layer.
    stem_stride: stride of the first convolution; 2 in the paper.
    """

    def __init__(
        self,
        blocks: tuple[Block, ...],
        *,
        last: int,
        classes: int,
        width: float = 1.0,
        dropout: float = 0.2,
        stem_stride: int = 2,
    ) -> None:
        super().__init__()
        channels = rounded(16 * width)
        layers: list[nn.Module] = [ConvNorm(3, channels, 3, stem_stride, nn.Hardswish)]
        for block in blocks:
            layers.append(InvertedResidual(channels, block, width))
            channels = rounded(block.out * width)
        layers.append(ConvNorm(channels, 6 * channels, 1, 1, nn.Hardswish))
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        hidden = rounded(last * width)
        self.classifier = nn.Sequential(
            nn.Linear(6 * channels, hidden),
            nn.Hardswish(),
            nn.Dropout(dropout),
            nn.Linear(hidden, classes),
        )
        self.apply(_initialise)

    def forward(self, image: Tensor) -> Tensor:
        """Logits."""
        features: Tensor = self.avgpool(self.features(image))
        logits: Tensor = self.classifier(features.flatten(1))
        return logits


class ConvNorm(nn.Sequential):
    """Convolution, batch norm, activation."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        stride: int,
        activation: Callable[[], nn.Module] | None,
        groups: int = 1,
    ) -> None:
        padding = (kernel - 1) // 2
        conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, groups=groups, bias=False)
        layers = [conv, NORM(outputs)]
        super().__init__(*layers, *([activation()] if activation else []))


class SqueezeExcitation(nn.Module):
    """Channel gates from the mean over the image (paper, figure 4)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        squeezed = rounded(channels / 4)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc1 = nn.Conv2d(channels, squeezed, 1)
        self.activation = nn.ReLU()
        self.fc2 = nn.Conv2d(squeezed, channels, 1)
        self.scale_activation = nn.Hardsigmoid()

    def forward(self, x: Tensor) -> Tensor:
        """`x` with each channel scaled into 0..1 of itself."""
        gates: Tensor = self.fc2(self.activation(self.fc1(self.avgpool(x))))
        return x * self.scale_activation(gates)  # type: ignore[no-any-return]


class InvertedResidual(nn.Module):
    """Expand, depthwise, squeeze-excite, project; with a shortcut where shapes allow."""

    def __init__(self, inputs: int, block: Block, width: float) -> None:
        super().__init__()
        activation = nn.Hardswish if block.hardswish else nn.ReLU
        expanded, out = rounded(block.expanded * width), rounded(block.out * width)
        layers: list[nn.Module] = []
        if expanded != inputs:
            layers.append(ConvNorm(inputs, expanded, 1, 1, activation))
        layers.append(
            ConvNorm(expanded, expanded, block.kernel, block.stride, activation, groups=expanded)
        )
        if block.squeeze:
            layers.append(SqueezeExcitation(expanded))
        layers.append(ConvNorm(expanded, out, 1, 1, None))
        self.block = nn.Sequential(*layers)
        self.shortcut = block.stride == 1 and inputs == out

    def forward(self, x: Tensor) -> Tensor:
        """Same height and width over the stride."""
        result: Tensor = self.block(x)
        return result + x if self.shortcut else result


def rounded(channels: float, divisor: int = 8) -> int:
    """The nearest multiple of 8, but never less than 90 % of `channels`."""
    nearest = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return nearest + divisor if nearest < 0.9 * channels else nearest


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out")
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, 0, 0.01)
        nn.init.zeros_(module.bias)
