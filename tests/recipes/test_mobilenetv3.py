"""The students are the paper's networks, with torchvision's parameter names."""

from __future__ import annotations

import pytest
import torch

from sdk.recipes.models.cifar_resnet import CifarResNet
from sdk.recipes.models.mobilenetv3 import mobilenet_v3_large, mobilenet_v3_small

# Parameter counts and names that torchvision 0.29 has for the same networks.
COUNTS = {mobilenet_v3_small: 2_542_856, mobilenet_v3_large: 5_483_032}
NAMES = {
    mobilenet_v3_small: (
        "features.0.0.weight",
        "features.1.block.1.fc1.weight",
        "features.12.1.running_var",
        "classifier.3.bias",
    ),
    mobilenet_v3_large: (
        "features.1.block.1.0.weight",
        "features.4.block.2.fc2.bias",
        "features.16.0.weight",
        "classifier.0.weight",
    ),
}


@pytest.mark.parametrize("build", COUNTS)
def test_size_and_names(build) -> None:
    model = build()
    assert sum(p.numel() for p in model.parameters()) == COUNTS[build]
    assert set(NAMES[build]) <= set(model.state_dict())


@pytest.mark.parametrize(("stem_stride", "side"), [(2, 7), (1, 14)])
def test_strides(stem_stride: int, side: int) -> None:
    model = mobilenet_v3_small(5, stem_stride=stem_stride).eval()
    image = torch.rand(1, 3, 224, 224)
    with torch.no_grad():
        assert model.features(image).shape[2:] == (side, side)
        assert model(image).shape == (1, 5)


@pytest.mark.parametrize(("depth", "count"), [(20, 269_722), (56, 853_018)])
def test_cifar_resnets_are_of_the_paper_s_size(depth: int, count: int) -> None:
    """He et al., table 6: 0.27 and 0.85 million parameters."""
    assert sum(p.numel() for p in CifarResNet(depth).parameters()) == count
