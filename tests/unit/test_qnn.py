"""Qualcomm's chips and what a context binary asks of a machine, without the package."""

from __future__ import annotations

from pathlib import Path

import pytest

import sdk
from sdk import qnn
from sdk.runtimes import check_requires, probe, qnn as npu
from sdk.signature import Signature, TensorSpec
from sdk.target import Target

NEEDS = {"qnn": "2.51.0", "soc": "SM8650", "htp": "v75"}
PORTABLE = Target.parse("onnxruntime:npu:int8")


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A Snapdragon with QNN 2.51.1; its chip's name is what the file says."""
    monkeypatch.setattr(qnn, "missing", lambda: None)
    monkeypatch.setattr(qnn, "simulated", lambda: False)
    monkeypatch.setattr(qnn, "sdk_version", lambda: "2.51.1")
    monkeypatch.setattr(qnn, "SOC_FILE", tmp_path / "machine")
    return tmp_path / "machine"


@pytest.mark.parametrize("name", ["SM8650", "sm8650"])
def test_chip_is_found_by_name(name: str) -> None:
    assert qnn.soc_of(name) == qnn.Soc("SM8650", 57, 75)


def test_unknown_chip_names_the_known_and_the_nearest() -> None:
    with pytest.raises(sdk.InputError, match="'sc8380' is not known") as caught:
        qnn.soc_of("sc8380")
    assert "SM8750" in str(caught.value.expected)
    assert caught.value.fix == "did you mean 'SC8380XP'?"


def test_table_has_one_row_for_each_chip_and_number() -> None:
    assert len({soc.model for soc in qnn.SOCS.values()}) == len(qnn.SOCS)
    assert all(name == soc.name and soc.htp >= 68 for name, soc in qnn.SOCS.items())


def test_missing_package_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qnn, "installed", lambda _: False)
    support = npu.support()
    assert not support.run
    assert not support.compile
    assert support.reason == "onnxruntime-qnn is not installed"
    assert support.fix == "pip install 'edge-sdk[qnn]'"
    with pytest.raises(sdk.EngineUnavailableError, match="no CPU can stand in") as caught:
        check_requires(PORTABLE, NEEDS)
    assert "pip install 'edge-sdk[qnn]'" in str(caught.value.fix)


def test_artifact_without_context_binary_needs_nothing() -> None:
    check_requires(PORTABLE, {})


@pytest.mark.parametrize("machine", ["SM8650\n", "sm8650", "SM9999", None])
def test_matching_and_unknown_chips_are_let_through(device: Path, machine: str | None) -> None:
    """QNN itself decides where the system does not tell the chip."""
    if machine is not None:
        device.write_text(machine)
    check_requires(PORTABLE, NEEDS)


def test_other_architecture_is_refused(device: Path) -> None:
    device.write_text("SM8550")
    with pytest.raises(
        sdk.EngineUnavailableError, match="another NPU than that of SM8550"
    ) as caught:
        check_requires(PORTABLE, NEEDS)
    assert caught.value.expected == "HTP v75 (SM8650)"
    assert "SM8550" in str(caught.value.fix)


def test_newer_sdk_is_refused(device: Path) -> None:
    with pytest.raises(sdk.EngineUnavailableError, match="newer QNN SDK") as caught:
        check_requires(PORTABLE, NEEDS | {"qnn": "2.100.0"})
    assert caught.value.expected == "QNN SDK 2.100.0 or later"
    assert caught.value.got == "2.51.1"


def test_device_is_not_called_a_simulator(device: Path) -> None:
    assert npu.support().checked_on == "engine"


def test_npu_is_listed_beside_the_cpu() -> None:
    found = probe("onnxruntime").devices
    if "cpu" not in found:
        pytest.skip("onnxruntime is not installed")
    assert found["npu"].precisions == ("int8", "a16w8", "fp16")


class _Node:
    name, op_type = "erf_token_3", "Erf"


class _Part:
    ep_name = "CPUExecutionProvider"

    def get_nodes(self) -> list[_Node]:
        return [_Node()]


class _Session:
    def get_provider_graph_assignment_info(self) -> list[_Part]:
        return [_Part()]


@pytest.mark.parametrize(
    ("dim", "reason"), [(2, "QNN has no operator"), (sdk.Dim("n", 1, 2, 4), "fixed shapes")]
)
def test_node_on_the_cpu_is_told_with_the_reason(dim: int | sdk.Dim, reason: str) -> None:
    signature = Signature((TensorSpec("x", "float32", (dim,)),), ())
    (row,) = npu.placement(_Session(), Path("model.onnx"), signature)
    assert (row.device, row.kind, row.nodes) == ("cpu", "Erf", ("erf",))
    assert reason in row.reason
