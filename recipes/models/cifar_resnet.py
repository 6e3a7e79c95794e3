"""The CIFAR ResNets of He et al. (2016, arXiv 1512.03385, section 4.2): depth 6 n + 2, shortcuts of
option A (every second pixel, zeros for new channels). Parameter names are those of the public
checkpoints of akamaster/pytorch_resnet_cifar10.
"""

from __future__ import annotations

import torch.nn.functional as nnf
from torch import Tensor, nn


class CifarResNet(nn.Module):
    """Images N x `channels` x H x W to logits N x `classes`; `depth` is 6 n + 2."""

    def __init__(self, depth: int = 20, classes: int = 10) -> None:
        super().__init__()
        count = (depth - 2) // 6
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = _stage(16, 16, count, 1)
        self.layer2 = _stage(16, 32, count, 2)
        self.layer3 = _stage(32, 64, count, 2)
        self.linear = nn.Linear(64, classes)
        self.apply(_initialise)

    def forward(self, image: Tensor) -> Tensor:
        """Logits."""
        x = nnf.relu(self.bn1(self.conv1(image)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.linear(x.mean((2, 3)))
        return logits


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions and a shortcut without parameters."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride, self.extra = stride, (outputs - inputs) // 2

    def forward(self, x: Tensor) -> Tensor:
        """Height and width over the stride."""
        y = self.bn2(self.conv2(nnf.relu(self.bn1(self.conv1(x)))))
        if self.stride != 1 or self.extra:
            x = nnf.pad(
                x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.extra, self.extra)
            )
        return nnf.relu(y + x)


def _stage(inputs: int, outputs: int, count: int, stride: int) -> nn.Sequential:
    first = BasicBlock(inputs, outputs, stride)
    return nn.Sequential(first, *(BasicBlock(outputs, outputs, 1) for _ in range(count - 1)))


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.kaiming_normal_(module.weight)
