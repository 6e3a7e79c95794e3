"""A model with plugin kernels, from `sdk.compile` to an answer, with and without their library."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from kernel_rows import EXAMPLES
from torch import nn

import sdk
from sdk.artifact import Artifact
from sdk.kernels import library, openvino
from sdk.kernels.cmake import missing_tools
from sdk.kernels.registry import spec_of
from sdk.manifest import KernelUse
from sdk.runtimes.plugins import plugin_of


@pytest.fixture(autouse=True)
def _examples(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The example kernel as a user's own, by the environment alone."""
    monkeypatch.setenv("EDGE_KERNELS_PATH", str(EXAMPLES))
    yield
    library._library.cache_clear()


@pytest.fixture
def _native() -> None:
    if missing_tools():
        pytest.skip(f"no {' and no '.join(missing_tools())}")


class Model(nn.Module):
    """Two nodes of a kernel: with other attributes, and one with a tensor left out."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.kernel = nn.Linear(8, 8), spec_of("scale_add")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: n x 8."""
        y = self.kernel(self.linear(x), x, alpha=0.25)
        return self.kernel(y.relu(), None) + self.kernel(y, y, alpha=-2.0)


def compiled(tmp_path: Path, target: str, **options: object) -> tuple[Artifact, np.ndarray]:
    """An artifact of the model, and the model's answer for its example input."""
    torch.manual_seed(0)
    model, x = Model().eval(), torch.randn(5, 8)
    artifact = sdk.compile(
        model,
        inputs={"x": x},
        dynamic={"x": {0: sdk.Dim("n", 1, 5, 16)}},
        target=target,
        output=tmp_path / "m.edge",
        threads=1,
        **options,
    )
    return artifact, model(x).detach().numpy()


def answer(artifact: Artifact) -> np.ndarray:
    torch.manual_seed(0)
    Model()  # as many random numbers as the model took
    with sdk.load(artifact.path, threads=1) as model:
        return model.predict(torch.randn(5, 8).numpy())


def onnx_of(artifact: Artifact) -> onnx.ModelProto:
    return onnx.load(artifact.path / "model.onnx")


@pytest.mark.usefixtures("_native")
def test_onnxruntime_keeps_the_node_and_names_it(tmp_path: Path) -> None:
    artifact, want = compiled(tmp_path, "onnxruntime")
    assert artifact.manifest.kernels == (KernelUse("edge::scale_add", 1, "native"),)
    kinds = [(node.domain, node.op_type) for node in onnx_of(artifact).graph.node]
    assert kinds.count(("edge", "scale_add")) == 3
    np.testing.assert_allclose(answer(artifact), want, rtol=1e-5, atol=1e-6)
    placed = json.loads((artifact.path / "placement.json").read_text())
    isa = library.library().isa
    assert [p["kernel"] for p in placed].count(f"edge::scale_add ({isa})") == 3
    with sdk.load(artifact.path, threads=1) as model:
        rows = sdk.profile(model, runs=3).operators
    assert sum("scale_add" in row.name for row in rows) == 3


@pytest.mark.usefixtures("_native")
def test_openvino_keeps_the_node_and_names_it(tmp_path: Path) -> None:
    artifact, want = compiled(tmp_path, "openvino")
    assert artifact.manifest.kernels == (KernelUse("edge::scale_add", 1, "native"),)
    np.testing.assert_allclose(answer(artifact), want, rtol=1e-5, atol=1e-6)
    placed = json.loads((artifact.path / "placement.json").read_text())
    named = [p for p in placed if p["kernel"] == f"edge::scale_add ({library.library().isa})"]
    assert [p["kind"] for p in named] == ["scale_add"] * 3
    with sdk.load(artifact.path, threads=1) as model:
        kinds = [row.kind for row in sdk.profile(model, runs=3).operators]
    assert kinds.count("scale_add") == 3


def test_core_ml_gets_the_composite(tmp_path: Path) -> None:
    """Its evaluator is what the parity gate of the compile runs."""
    artifact, _ = compiled(tmp_path, "coreml")
    assert artifact.manifest.kernels == (KernelUse("edge::scale_add", 1, "composite"),)
    placed = json.loads((artifact.path / "placement.json").read_text())
    kinds = [p["kind"] for p in placed]
    assert any("add" in kind for kind in kinds)
    assert not any("scale_add" in kind for kind in kinds)


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino", "torch", "coreml"])
def test_decomposed_on_every_engine(tmp_path: Path, engine: str) -> None:
    artifact, want = compiled(tmp_path, engine, kernels="decomposed")
    assert artifact.manifest.kernels == (KernelUse("edge::scale_add", 1, "decomposed"),)
    if artifact.manifest.kept.checked_on == "engine":
        np.testing.assert_allclose(answer(artifact), want, rtol=1e-5, atol=1e-6)


@pytest.mark.usefixtures("_native")
def test_other_dtypes_than_the_kernels_are_decomposed(tmp_path: Path) -> None:
    artifact, want = compiled(tmp_path, "onnxruntime:cpu:fp16", waive=["slower"])
    assert artifact.manifest.kernels == (KernelUse("edge::scale_add", 1, "decomposed"),)
    np.testing.assert_allclose(answer(artifact), want, atol=2e-2)


@pytest.mark.usefixtures("_native")
def test_portable_runs_with_and_without_the_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact, want = compiled(tmp_path, "onnxruntime", kernels="portable")
    assert artifact.manifest.kernels == (KernelUse("edge::scale_add", 1, "portable"),)
    functions = [(f.domain, f.name, f.overload) for f in onnx_of(artifact).functions]
    assert len(functions) == len(set(functions)) == 3
    np.testing.assert_allclose(answer(artifact), want, rtol=1e-5, atol=1e-6)
    without_library(monkeypatch)
    np.testing.assert_allclose(answer(artifact), want, rtol=1e-5, atol=1e-6)


def without_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine where no library can be loaded, built or found."""
    library._library.cache_clear()
    monkeypatch.setattr(library, "missing_tools", lambda: ("CMake",))
    monkeypatch.setattr(openvino, "missing_tools", lambda: ("CMake",))


@pytest.mark.usefixtures("_native")
def test_a_missing_library_is_told_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact, _ = compiled(tmp_path, "onnxruntime")
    without_library(monkeypatch)
    with pytest.raises(sdk.KernelMissingError, match="edge::scale_add version 1") as caught:
        sdk.load(artifact.path)
    assert "no CMake" in str(caught.value)
    assert caught.value.fix is not None


@pytest.mark.usefixtures("_native")
def test_an_older_kernel_is_told(tmp_path: Path) -> None:
    artifact, _ = compiled(tmp_path, "onnxruntime")
    newer = replace(artifact.manifest, kernels=(KernelUse("edge::scale_add", 2, "native"),))
    (artifact.path / "manifest.json").write_bytes(newer.sealed().dumps())
    with pytest.raises(sdk.KernelMissingError, match="edge::scale_add version 2") as caught:
        sdk.load(artifact.path)
    assert "edge::scale_add version 1" in str(caught.value.got)


def test_without_a_library_a_compile_decomposes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_library(monkeypatch)
    artifact, want = compiled(tmp_path, "onnxruntime")
    assert artifact.manifest.kernels == (KernelUse("edge::scale_add", 1, "decomposed"),)
    np.testing.assert_allclose(answer(artifact), want, rtol=1e-5, atol=1e-6)


def test_an_unknown_policy_is_refused(tmp_path: Path) -> None:
    with pytest.raises(sdk.InputError, match="'fast' is not known"):
        compiled(tmp_path, "onnxruntime", kernels="fast")


def test_an_engine_without_a_binding_refuses_kernels() -> None:
    with pytest.raises(sdk.KernelMissingError, match="'torch' runs no plugin kernels") as caught:
        plugin_of("torch", (KernelUse("edge::scale_add", 1, "portable"),))
    assert caught.value.got == "edge::scale_add"
    assert plugin_of("torch", (KernelUse("edge::scale_add", 1, "decomposed"),)) is None
