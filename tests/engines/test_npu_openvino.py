"""OpenVINO's NPU on a machine without one: what it says, and files that wait for the device."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import sdk
from sdk.runtimes import probe

INPUTS = [torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(i)) for i in range(8)]


@pytest.fixture(autouse=True)
def no_npu() -> None:
    found = probe("openvino").devices
    if "cpu" not in found:
        pytest.skip("openvino is not installed")
    if found["npu"].run:
        pytest.skip("this machine has an Intel NPU")


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)).eval()


def test_doctor_says_what_is_missing_and_where_it_is() -> None:
    support = sdk.engines()["openvino"].devices["npu"]
    assert support.compile
    assert not support.run
    assert "driver" in str(support.reason)
    assert "github.com/intel/linux-npu-driver" in str(support.fix)


def test_file_waits_for_the_device(tmp_path: Path) -> None:
    """The gates ran on a stand-in, which the manifest says; no CPU is claimed to be the NPU."""
    artifact = sdk.compile(
        network(), inputs=INPUTS[0], calibration=INPUTS, target="openvino:npu:int8",
        output=tmp_path / "m.edge", threads=1,
    )  # fmt: skip
    kept = artifact.manifest.kept
    assert (kept.target, kept.checked_on, kept.latency) == ("openvino:npu:int8", "proxy", None)
    with pytest.raises(sdk.EngineUnavailableError, match="cannot run on 'npu' here") as caught:
        sdk.load(artifact, fallback="forbid", threads=1)
    assert "linux-npu-driver" in str(caught.value.fix)
    with pytest.warns(sdk.FallbackWarning, match="the CPU stands in"):
        model = sdk.load(artifact, threads=1)
    with model:
        assert str(model.target) == "openvino:cpu:int8"


def test_shapes_that_vary_are_refused(tmp_path: Path) -> None:
    with pytest.raises(sdk.UnsupportedOperatorError, match="fixed shapes only"):
        sdk.compile(
            network(), inputs=INPUTS[0], target="openvino:npu:fp16", output=tmp_path / "m.edge",
            dynamic={"input": {0: sdk.Dim("batch", 1, 2, 4)}}, threads=1,
        )  # fmt: skip
