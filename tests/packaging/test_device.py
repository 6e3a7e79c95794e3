"""The installed wheel on a device: load and predict work, the rest says what is missing."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import numpy as np
import pytest
import torch
from conftest import Environment, pip

import sdk
from sdk.kernels.cmake import missing_tools
from sdk.kernels.registry import spec_of

pytestmark = pytest.mark.packaging

PREDICT = """
import numpy, sdk
with sdk.load("student.edge", threads=1) as model:
    numpy.save("got.npy", model.predict(numpy.load("x.npy")))
print(sdk.verify("student.edge", threads=1).ok)
"""
COMPILE = """
import sdk
try:
    sdk.compile("model.onnx", inputs={}, target="onnxruntime", output="x.edge")
except sdk.EngineUnavailableError as error:
    print(error)
"""
ENGINES = """
import sdk
print(*(name for name, found in sdk.engines().items() if found.run))
print(sdk.engines()["openvino"].fix)
"""


@pytest.fixture(scope="module")
def artifact(device: Environment) -> sdk.Artifact:
    """A small network, compiled here into the device's folder, with an input and its answer."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(288, 10)
    ).eval()
    x = torch.randn(1, 3, 8, 8)
    np.save(device.folder / "x.npy", x.numpy())
    np.save(device.folder / "want.npy", model(x).detach().numpy())
    return sdk.compile(
        model, inputs=x, target="onnxruntime", output=device.folder / "student.edge", threads=1
    )


def test_environment_is_as_thin_as_it_should_be(device: Environment) -> None:
    listed = json.loads(device.run("pip", "list", "--format", "json").stdout)
    names = {package["name"].lower() for package in listed}
    assert {"edge-sdk", "numpy", "onnxruntime", "safetensors"} <= names
    assert not names & {"torch", "onnx", "openvino", "typer", "rich", "pillow", "matplotlib"}


@pytest.mark.usefixtures("artifact")
def test_load_and_predict(device: Environment) -> None:
    assert device.python(PREDICT) == "True"
    got, want = (np.load(device.folder / name) for name in ("got.npy", "want.npy"))
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


KERNELS = """
import numpy, sdk
from sdk.kernels.library import library
print(library().path)
with sdk.load("kernels.edge", threads=1) as model:
    numpy.save("kernels_got.npy", model.predict(numpy.load("kernels_x.npy")))
"""
NO_KERNELS = """
import os
os.environ["CXX"] = "/nowhere/c++"
import sdk
try:
    sdk.load("kernels.edge", threads=1)
except sdk.KernelMissingError as error:
    print(error)
"""


@pytest.fixture(scope="module")
def with_kernels(device: Environment) -> sdk.Artifact:
    """A network with a plugin kernel, compiled here into the device's folder."""
    if missing_tools():
        pytest.skip(f"no {' and no '.join(missing_tools())}")
    torch.manual_seed(0)
    kernel = spec_of("group_norm_silu")

    class Block(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.convolution, self.norm = torch.nn.Conv2d(3, 8, 3), torch.nn.GroupNorm(4, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.convolution(x)
            return kernel(y, self.norm.weight, self.norm.bias, groups=4, eps=1e-5)

    model, x = Block().eval(), torch.randn(1, 3, 8, 8)
    np.save(device.folder / "kernels_x.npy", x.numpy())
    np.save(device.folder / "kernels_want.npy", model(x).detach().numpy())
    output = device.folder / "kernels.edge"
    return sdk.compile(model, inputs=x, target="onnxruntime", output=output, threads=1)


def test_kernels_run_from_the_wheel(device: Environment, with_kernels: sdk.Artifact) -> None:
    assert [k.binding for k in with_kernels.manifest.kernels] == ["native"]
    library = Path(device.python(KERNELS))
    assert library.is_relative_to(device.bin.parent)
    got, want = (np.load(device.folder / f"kernels_{name}.npy") for name in ("got", "want"))
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("with_kernels")
def test_a_wheel_without_kernels_says_so(device: Environment, pure_wheel: Path) -> None:
    pure = device.folder / "pure"
    pip(device.bin / "python", "install", "--no-deps", "--target", pure, pure_wheel)
    message = device.python(f"import sys; sys.path.insert(0, {str(pure)!r})\n{NO_KERNELS}")
    assert "edge::group_norm_silu version 1" in message
    assert "C++ compiler" in message


def test_the_manifest_of_an_artifact_is_valid(artifact: sdk.Artifact) -> None:
    published = json.loads((Path(sdk.__file__).parent / "manifest.schema.json").read_text())
    manifest = json.loads((artifact.path / "manifest.json").read_text())
    jsonschema.Draft202012Validator(published).validate(manifest)


def test_compile_names_the_extra(device: Environment) -> None:
    message = device.python(COMPILE)
    assert "'torch', which is not installed" in message
    assert "pip install 'edge-sdk[compile]'" in message


def test_engines_tell_what_is_there(device: Environment) -> None:
    assert device.python(ENGINES).splitlines() == [
        "onnxruntime",
        "pip install 'edge-sdk[openvino]'",
    ]


def test_command_names_the_extra(device: Environment) -> None:
    done = device.run("edge", "doctor", check=False)
    assert done.returncode == 2
    assert "pip install 'edge-sdk[cli]'" in done.stderr
    assert "Traceback" not in done.stderr
