"""What the TensorRT engine says of a machine, and of artifacts that were built for another one."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from nvidia_stand_in import CudaRuntime, Status

from sdk import nvidia
from sdk.errors import EngineUnavailableError
from sdk.nvidia import FULL, RTX, Gpu
from sdk.runtimes import tensorrt

NO_GPU = Gpu(None, "no NVIDIA GPU can be used: there is no NVIDIA driver")
MADE = {
    "library": RTX,
    "library_version": "1.7.1.116",
    "capabilities": "sm86+sm89",
    "platform": "linux-x86_64",
}
Machine = Callable[..., None]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    """Sets the GPU and the versions of the installed packages."""

    def make(capability: str | None, **versions: str) -> None:
        at = Gpu(capability) if capability else NO_GPU
        for module in (nvidia, tensorrt):
            monkeypatch.setattr(module, "gpu", lambda: at)
            monkeypatch.setattr(module, "installed", lambda name: name in versions)
            monkeypatch.setattr(module, "version_of", versions.get)
        monkeypatch.setattr(tensorrt, "this_platform", lambda: "linux-x86_64")

    return make


def test_without_a_library_probe_names_both_extras(machine: Machine) -> None:
    machine(None)
    found = tensorrt.probe()
    assert not found.compile
    assert not found.run
    assert "edge-sdk[tensorrt-rtx]" in (found.fix or "")
    assert "edge-sdk[tensorrt]" in (found.fix or "")


def test_rtx_without_a_gpu_compiles_and_is_checked_on_a_proxy(machine: Machine) -> None:
    machine(None, tensorrt_rtx="1.7.1.116", onnxruntime="1.32.0")
    found = tensorrt.probe()
    gpu = found.devices["gpu"]
    assert found.version == "1.7.1.116 (tensorrt_rtx)"
    assert (gpu.compile, gpu.run, gpu.checked_on) == (True, False, "proxy")
    assert {"fp32", "fp16", "bf16", "int8", "fp8", "int4"} <= set(gpu.precisions)
    assert "driver" in (gpu.reason or "")
    assert "load the artifact on a machine" in (gpu.fix or "")


def test_rtx_without_a_gpu_and_without_its_proxy_does_not_compile(machine: Machine) -> None:
    machine(None, tensorrt_rtx="1.7.1.116")
    gpu = tensorrt.probe().devices["gpu"]
    assert not gpu.compile
    assert "edge-sdk[onnxruntime]" in (gpu.fix or "")


def test_the_full_library_needs_a_gpu(machine: Machine) -> None:
    machine(None, tensorrt="11.4.0")
    gpu = tensorrt.probe().devices["gpu"]
    assert (gpu.compile, gpu.run) == (False, False)
    assert gpu.reason == NO_GPU.reason
    assert "edge-sdk[tensorrt-rtx]" in (gpu.fix or "")


@pytest.mark.parametrize(
    ("capability", "absent"), [("sm75", {"bf16", "fp8"}), ("sm80", {"fp8"}), ("sm89", set())]
)
def test_a_gpu_has_the_precisions_of_its_generation(
    machine: Machine, capability: str, absent: set[str]
) -> None:
    machine(capability, tensorrt="11.4.0", tensorrt_rtx="1.7.1.116")
    found = tensorrt.probe()
    gpu = found.devices["gpu"]
    assert found.version == "11.4.0 (tensorrt)"  # the full library goes first where a GPU is
    assert gpu.run
    assert set(tensorrt.PRECISIONS) - set(gpu.precisions) == absent


def test_a_gpu_that_rtx_has_nothing_for(machine: Machine) -> None:
    pytest.importorskip("tensorrt_rtx")
    machine("sm90", tensorrt_rtx="1.7.1.116")
    gpu = tensorrt.probe().devices["gpu"]
    assert (gpu.compile, gpu.run, gpu.checked_on) == (True, False, "proxy")
    assert "sm90" in (gpu.reason or "")


@pytest.mark.parametrize(
    ("built_for", "own"),
    [("sm86+sm89", "sm89"), ("sm80 and later", "sm80"), ("sm80 and later", "sm120")],
)
def test_an_artifact_for_this_machine_is_taken(machine: Machine, built_for: str, own: str) -> None:
    machine(own, tensorrt_rtx="1.7.1.116")
    tensorrt.check_requires(MADE | {"capabilities": built_for})


@pytest.mark.parametrize(
    ("own", "version", "changed", "says"),
    [
        ("sm89", "1.8.0.1", {}, "pip install 'tensorrt-rtx==1.7.1.116', or compile"),
        ("sm89", None, {}, "it is not installed"),
        ("sm89", "1.7.1.116", {"library": FULL}, "pip install 'tensorrt==1.7.1.116'"),
        ("sm89", "1.7.1.116", {"library": "other"}, "it is not installed"),
        ("sm89", "1.7.1.116", {"platform": "windows-amd64"}, "another platform"),
        ("sm80", "1.7.1.116", {}, "tensorrt:gpu:<precision>:sm80"),
        ("sm75", "1.7.1.116", {"capabilities": "sm80 and later"}, "got: sm75"),
        (None, "1.7.1.116", {}, "no NVIDIA driver"),
    ],
)
def test_an_artifact_for_another_machine_is_refused(
    machine: Machine, own: str | None, version: str | None, changed: dict[str, str], says: str
) -> None:
    machine(own, **({} if version is None else {"tensorrt_rtx": version}))
    with pytest.raises(EngineUnavailableError) as caught:
        tensorrt.check_requires(MADE | changed)
    assert says in str(caught.value)


def test_the_capability_comes_from_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = CudaRuntime(capability=(12, 0))
    monkeypatch.setattr(nvidia, "require", lambda *_, **__: cuda)
    assert nvidia.gpu() == Gpu("sm120")
    cuda.fails["cudaGetDeviceCount"] = Status.cudaErrorLaunch
    found = nvidia.gpu()
    assert found.capability is None
    assert "cudaErrorLaunch" in (found.reason or "")


def test_no_bindings_are_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object, **__: object) -> None:
        raise ModuleNotFoundError("No module named 'cuda.bindings'")

    monkeypatch.setattr(nvidia, "require", missing)
    assert "cuda.bindings" in (nvidia.gpu().reason or "")
