"""A real artifact made without torch: a small ONNX network, a processor and golden values."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from sdk.artifact import GOLDEN, PROCESSOR, SOURCES, Artifact, pack_golden, publish, staging
from sdk.manifest import FORMAT_VERSION, Candidate, Function, Manifest
from sdk.parity import OutputParity
from sdk.processor import Classification, ImageProcessor, Processor
from sdk.signature import Dim, Signature, TensorSpec

BATCH = Dim("batch", 1, 1, 4)
SIGNATURE = Signature(
    (TensorSpec("x", "float32", (BATCH, 3, 4, 4)),), (TensorSpec("y", "float32", (BATCH, 2)),)
)
WEIGHT = np.array([[1.0, -1.0], [0.5, 2.0], [0.0, 1.0]], np.float32)
PROCESS = Processor(
    "x", ImageProcessor(size=(4, 4)), output="y", post=Classification(("cat", "dog"), top=1)
)
MANIFEST = Manifest(
    format_version=FORMAT_VERSION,
    name="handmade",
    target="onnxruntime:cpu:fp32",
    requested="onnxruntime:cpu:fp32",
    functions={"main": Function(SIGNATURE, "model.onnx")},
    candidates=(
        Candidate(
            "onnxruntime:cpu:fp32", True, "asked for", 1, (OutputParity("y", 0, 0, 0, 1, ok=True),)
        ),
    ),
    check_batches=1,
    threads=1,
    tools={"onnx": onnx.__version__},
    provenance={"source": "handmade"},
)


def reference(x: Any) -> Any:
    """The network: means over height and width, times the weight."""
    return x.mean((2, 3)) @ WEIGHT


def network() -> bytes:
    """The network as an ONNX file."""
    graph = helper.make_graph(
        [
            helper.make_node("GlobalAveragePool", ["x"], ["pooled"], "pool"),
            helper.make_node("Flatten", ["pooled"], ["flat"], "flatten"),
            helper.make_node("MatMul", ["flat", "weight"], ["y"], "matmul"),
        ],
        "main",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3, 4, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 2])],
        [numpy_helper.from_array(WEIGHT, "weight")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return bytes(model.SerializeToString())


def fill_folder(root: Path) -> None:
    """All files but the manifest."""
    x = np.random.default_rng(0).normal(size=(1, 3, 4, 4)).astype(np.float32)
    root.mkdir()
    (root / "model.onnx").write_bytes(network())
    (root / GOLDEN).write_bytes(pack_golden([({"x": x}, {"y": reference(x)})]))
    (root / PROCESSOR).write_text(json.dumps(PROCESS.to_json()))
    (root / SOURCES).write_text(json.dumps({"matmul": ["head", "aten.mm", "net.py:3: x @ w"]}))


def write_artifact(
    output: Path, *, overwrite: bool = False, manifest: Manifest = MANIFEST
) -> Artifact:
    """Build the artifact at `output` as the compiler does."""
    with staging(output, overwrite=overwrite) as folder:
        fill_folder(folder / "artifact")
        return publish(folder / "artifact", manifest, output, overwrite=overwrite)
