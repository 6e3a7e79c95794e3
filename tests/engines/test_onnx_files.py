"""ONNX files as a whole: a PyTorch model on its way round, and files that cannot be used."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest
import torch
from cases import mobile_block
from engines import row
from onnx import TensorProto, helper
from torch import Tensor, nn

import sdk

FILE = Path("model.onnx")


class Net(nn.Module):
    """Layers that exporters write in several nodes, with a dynamic batch."""

    def __init__(self) -> None:
        super().__init__()
        self.block = mobile_block(8, 16)
        self.norm, self.head = nn.GroupNorm(2, 8), nn.Linear(8 * 16, 5)

    def forward(self, image: Tensor) -> Tensor:
        y = torch.nn.functional.gelu(self.norm(self.block(image)))
        y = torch.nn.functional.interpolate(y, scale_factor=2.0, mode="bilinear")
        return self.head(torch.nn.functional.avg_pool2d(y, 4).reshape(image.shape[0], -1))


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Path]:
    """The model and the file that torch.onnx writes of it."""
    torch.manual_seed(0)
    model, path = Net().eval(), tmp_path_factory.mktemp("exported") / FILE
    torch.onnx.export(
        model,
        (torch.randn(2, 8, 8, 8),),
        path,
        input_names=["image"],
        dynamic_shapes={"image": {0: torch.export.Dim("batch", min=1, max=8)}},
        external_data=False,
        verbose=False,
    )
    return model, path


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("target", ["onnxruntime", "openvino", "torch", "onnxruntime:cpu:int8"])
def test_model_comes_back_from_onnx(
    target: str, exported: tuple[nn.Module, Path], tmp_path: Path
) -> None:
    row(target if target.count(":") else f"{target}:cpu:fp32").require()
    model, file = exported
    batches = [torch.randn(4, 8, 8, 8) for _ in range(8)]
    sdk.compile(
        file,
        inputs={"image": batches[0]},
        target=target,
        output=tmp_path / "m.edge",
        calibration=batches,
        dynamic={"image": {0: sdk.Dim("batch", 1, 4, 8)}},
        waive=["slower"],
        threads=1,
    )
    limit = 0.15 if target.endswith("int8") else 1e-3
    with sdk.load(tmp_path / "m.edge", threads=1) as loaded, torch.no_grad():
        assert str(loaded.target).startswith(target)
        for count in (1, 4, 7):
            x = torch.randn(count, 8, 8, 8)
            got, want = loaded.predict(x.numpy()), model(x).numpy()
            assert np.abs(got - want).max() <= limit * np.abs(want).max()


def simple(**changes: Any) -> onnx.ModelProto:
    """y = Relu(x), with some fields changed."""
    operator = changes.pop("operator", "Relu")
    node = helper.make_node(operator, ["x"], ["y"], name="act", **changes.pop("attributes", {}))
    node.domain = changes.pop("domain", "")
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [node],
        "g",
        [value("x", TensorProto.FLOAT, [2, 3])],
        [value("y", TensorProto.FLOAT, [2, 3])],
    )
    opsets = [helper.make_opsetid("", changes.pop("opset", 17)), helper.make_opsetid("my.ops", 1)]
    assert not changes
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


@pytest.fixture
def refused(tmp_path: Path) -> Callable[..., sdk.EdgeError]:
    """Compile a file, which must fail and leave nothing but the file behind."""

    def call(content: bytes | onnx.ModelProto | None, kind: type[sdk.EdgeError]) -> sdk.EdgeError:
        file = tmp_path / "in" / FILE
        file.parent.mkdir(exist_ok=True)
        if content is not None:
            raw = content if isinstance(content, bytes) else content.SerializeToString()
            file.write_bytes(raw)
        with pytest.raises(kind) as caught:
            sdk.compile(
                file,
                inputs=np.ones((2, 3), np.float32),
                target="torch",
                output=tmp_path / "m.edge",
                threads=1,
            )
        assert [path.name for path in tmp_path.iterdir()] == ["in"]
        return caught.value

    return call


def test_missing_file_is_an_input_error(refused: Callable[..., sdk.EdgeError]) -> None:
    assert "Cannot read" in str(refused(None, sdk.InputError))


@pytest.mark.parametrize(
    "content",
    [b"", b"not onnx", b"\x89PNG\r\n\x1a\n" + bytes(64), b"{}", bytes(1000), b"\xff" * 1000],
    ids=["empty", "text", "png", "json", "zeros", "ones"],
)
def test_file_that_is_not_onnx_is_an_input_error(
    content: bytes, refused: Callable[..., sdk.EdgeError]
) -> None:
    refused(content, sdk.InputError)


def test_truncated_file_is_an_input_error(
    exported: tuple[nn.Module, Path], refused: Callable[..., sdk.EdgeError]
) -> None:
    whole = exported[1].read_bytes()
    for size in (len(whole) // 3, len(whole) // 2, len(whole) - 10):
        refused(whole[:size], sdk.InputError)


def test_unknown_operator_is_named_with_what_is_near(
    refused: Callable[..., sdk.EdgeError],
) -> None:
    error = refused(simple(operator="Relu6"), sdk.UnsupportedOperatorError)
    assert "Relu6 act (domain ai.onnx, opset 17)" in str(error.got)
    assert "PRelu" in str(error.fix) or "Relu" in str(error.fix)


def test_operator_of_another_domain_is_named(refused: Callable[..., sdk.EdgeError]) -> None:
    error = refused(simple(domain="my.ops"), sdk.UnsupportedOperatorError)
    assert "domain my.ops" in str(error.got)


def test_attribute_that_is_not_covered_is_named(refused: Callable[..., sdk.EdgeError]) -> None:
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[1, 1, 2, 3] x) => (float[1, 1, 4, 6] y) '
        '<float[4] s = {1, 1, 2, 2}> { y = Resize<exclude_outside = 1, mode = "cubic">(x, , s) }'
    )
    error = refused(model, sdk.UnsupportedOperatorError)
    assert "exclude_outside=1" in str(error)


@pytest.mark.parametrize("opset", [5, 99])
def test_opset_out_of_range_is_named(opset: int, refused: Callable[..., sdk.EdgeError]) -> None:
    error = refused(simple(opset=opset), sdk.UnsupportedOperatorError)
    assert str(error.got) == f"opset {opset}"


def test_control_flow_is_named(refused: Callable[..., sdk.EdgeError]) -> None:
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[2, 3] x, bool c) => (float[2, 3] y) {'
        " y = If(c) <then_branch = t () => (float[2, 3] a) { a = Identity(x) },"
        " else_branch = e () => (float[2, 3] b) { b = Neg(x) }> }"
    )
    error = refused(model, sdk.UnsupportedOperatorError)
    assert "If" in error.what
    assert "control flow" in str(error.fix)


def with_external_data(location: str, length: int = 24) -> onnx.ModelProto:
    """y = x + w, where w lies in another file."""
    value = helper.make_tensor_value_info
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[2, 3])
    tensor.data_location = TensorProto.EXTERNAL
    for key, text in (("location", location), ("offset", "0"), ("length", str(length))):
        tensor.external_data.add(key=key, value=text)
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "w"], ["y"])],
        "g",
        [value("x", TensorProto.FLOAT, [2, 3])],
        [value("y", TensorProto.FLOAT, [2, 3])],
        [tensor],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize(
    ("location", "words"),
    [
        ("../secret.bin", "outside the model's folder"),
        ("/etc/hostname", "outside the model's folder"),
        ("link.bin", "outside the model's folder"),
        ("a/../../secret.bin", "outside the model's folder"),
        ("", "outside the model's folder"),
        ("missing.bin", "missing"),
        (".", "missing"),
        ("short.bin", "cannot be read"),
    ],
)
def test_external_data_is_read_from_the_folder_only(
    location: str, words: str, tmp_path: Path
) -> None:
    """The weights outside are there and would fit; a link to them does not help."""
    folder = tmp_path / "in"
    folder.mkdir()
    (tmp_path / "secret.bin").write_bytes(np.ones(6, np.float32).tobytes())
    (folder / "link.bin").symlink_to(tmp_path / "secret.bin")
    (folder / "short.bin").write_bytes(b"1234")
    (folder / FILE).write_bytes(with_external_data(location).SerializeToString())
    inputs = np.ones((2, 3), np.float32)
    with pytest.raises(sdk.InputError, match=words):
        sdk.compile(folder / FILE, inputs=inputs, target="torch", output=tmp_path / "m.edge")
    assert not (tmp_path / "m.edge").exists()


def test_external_data_beside_the_file_is_read(tmp_path: Path) -> None:
    """Also from another working directory."""
    weights = np.arange(6, dtype=np.float32).reshape(2, 3)
    (tmp_path / "w.bin").write_bytes(weights.tobytes())
    (tmp_path / FILE).write_bytes(with_external_data("w.bin").SerializeToString())
    x = np.ones((2, 3), np.float32)
    sdk.compile(tmp_path / FILE, inputs=x, target="torch", output=tmp_path / "m.edge", threads=1)
    with sdk.load(tmp_path / "m.edge") as model:
        np.testing.assert_array_equal(model.predict(x), x + weights)


def test_file_that_uses_an_undefined_value_is_an_input_error(
    refused: Callable[..., sdk.EdgeError],
) -> None:
    model = simple()
    model.graph.node[0].input[0] = "z"
    assert "breaks the ONNX specification" in str(refused(model, sdk.InputError))


def test_wrong_import_is_found_before_anything_is_built(
    monkeypatch: pytest.MonkeyPatch, refused: Callable[..., sdk.EdgeError]
) -> None:
    """The imported model is compared with what ONNX Runtime makes of the file itself."""
    from sdk.compilers.onnx_ops.table import OPERATORS

    monkeypatch.setitem(OPERATORS, "Relu", torch.neg)
    error = refused(simple(), sdk.ParityError)
    assert "model.onnx was not imported faithfully" in error.what


def test_reading_a_file_runs_no_code(tmp_path: Path) -> None:
    """The importer loads neither pickle files nor custom operator libraries: nothing to find."""
    (tmp_path / FILE).write_bytes(simple().SerializeToString())
    code = (
        "import sys; opened = []\n"
        "from pathlib import Path\n"
        "from sdk.compilers.onnx_import import load\n"
        "sys.addaudithook(lambda e, a: opened.append(a) if e in "
        "('pickle.find_class', 'ctypes.dlopen', 'subprocess.Popen', 'os.system') else None)\n"
        f"load(Path({str(tmp_path / FILE)!r}))\n"
        "assert not opened, opened\n"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, timeout=60)
