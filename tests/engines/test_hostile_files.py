"""Engine files that are broken or mean harm: only the SDK's errors come out of them."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from engines import row
from hypothesis import HealthCheck, given, settings
from mutations import Change, byte_edits, json_edits
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import save

from sdk.errors import EdgeError, EngineError
from sdk.runtimes import open_session
from sdk.signature import Dim, Signature, TensorSpec

SIGNATURE = Signature(
    (TensorSpec("x", "float32", (Dim("batch", 1, 1, 4), 4)),),
    (TensorSpec("y", "float32", (Dim("batch", 1, 1, 4), 4)),),
)
X = np.float32([[1, 2, 3, 4]])
WEIGHT = np.float32([1, -1, 0.5, 2])
PROGRAM = {
    "inputs": ["x"],
    "weights": {"w": "weight"},
    "nodes": [
        {"name": "mul", "op": "aten.mul.Tensor", "args": [{"node": "x"}, {"node": "w"}],
         "kwargs": {}},
        {"name": "sum", "op": "aten.sum.dim_IntList", "args": [{"node": "mul"}, [1], True],
         "kwargs": {"dtype": {"dtype": "float32"}}},
        {"name": "add", "op": "aten.add.Tensor", "args": [{"node": "mul"}, {"node": "sum"}],
         "kwargs": {"alpha": 2}},
    ],
    "outputs": [{"node": "add"}],
}  # fmt: skip


def write_program(folder: Path) -> Path:
    """x w + 2 sum(x w), for the reference engine."""
    (folder / "program.json").write_text(json.dumps(PROGRAM))
    (folder / "weights.safetensors").write_bytes(save({"weight": WEIGHT}))
    return folder / "program.json"


def network(weight: onnx.TensorProto) -> bytes:
    """x + weight as an ONNX file."""
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "weight"], ["y"], "add")],
        "main",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4])],
        [weight],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return bytes(model.SerializeToString())


def write_network(folder: Path) -> Path:
    (folder / "model.onnx").write_bytes(network(numpy_helper.from_array(WEIGHT, "weight")))
    return folder / "model.onnx"


ENGINES: dict[str, tuple[Callable[[Path], Path], Any, Any]] = {
    "torch": (
        write_program,
        X * WEIGHT + 2 * (X * WEIGHT).sum(),
        json_edits("program.json") | byte_edits(("program.json", "weights.safetensors")),
    ),
    "onnxruntime": (write_network, X + WEIGHT, byte_edits(("model.onnx",))),
    "openvino": (write_network, X + WEIGHT, byte_edits(("model.onnx",))),
}


def run(engine: str, file: Path) -> Any:
    target = row(engine)
    target.require()
    session = open_session(file, SIGNATURE, target.target, threads=1)
    try:
        return session.run({"x": X})["y"]
    finally:
        session.close()


@pytest.mark.parametrize("engine", ENGINES)
def test_whole_files_run(engine: str, tmp_path: Path) -> None:
    write, want, _ = ENGINES[engine]
    np.testing.assert_allclose(run(engine, write(tmp_path)), want)


@pytest.mark.parametrize("engine", ENGINES)
def test_damaged_files(engine: str, tmp_path: Path) -> None:
    write, _, mutations = ENGINES[engine]
    run(engine, write(tmp_path))  # loads the engine, whose time does not count

    @settings(
        max_examples=60, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow]
    )
    @given(mutate=mutations)
    def damaged(mutate: Change) -> None:
        file = write(tmp_path)
        mutate(tmp_path)
        start = time.process_time()
        with suppress(EdgeError), np.errstate(all="ignore"):
            run(engine, file)
        assert time.process_time() - start < 2

    damaged()


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("kind", ["above", "absolute", "link"])
def test_weights_outside_of_the_folder(engine: str, kind: str, tmp_path: Path) -> None:
    """ONNX may keep weights in other files; whose content would come out as the model's output."""
    folder = tmp_path / "artifact"
    folder.mkdir()
    secret = tmp_path / "secret"
    secret.write_bytes(WEIGHT.tobytes())
    (folder / "link").symlink_to(secret)
    weight = TensorProto(name="weight", data_type=TensorProto.FLOAT, dims=[4])
    weight.data_location = TensorProto.EXTERNAL
    place = {"above": "../secret", "absolute": str(secret), "link": "link"}[kind]
    for key, value in {"location": place, "offset": "0", "length": "16"}.items():
        weight.external_data.add(key=key, value=value)
    (folder / "model.onnx").write_bytes(network(weight))
    with pytest.raises(EngineError):
        run(engine, folder / "model.onnx")


@pytest.mark.parametrize(
    "operator",
    ["aten.from_file.default", "aten.__class__.mro", "os.system", "builtins.eval", "torch.load",
     "operator.attrgetter", "operator.methodcaller", "math.__loader__", "prims.device_put.default",
     "aten", "", "."],
)  # fmt: skip
def test_operators_that_are_not_allowed(operator: str, tmp_path: Path) -> None:
    file = write_program(tmp_path)
    program = json.loads(file.read_text())
    program["nodes"][0] |= {"op": operator, "args": ["/etc/hostname"]}
    file.write_text(json.dumps(program))
    with pytest.raises(EdgeError, match=r"program\.json"):
        run("torch", file)
