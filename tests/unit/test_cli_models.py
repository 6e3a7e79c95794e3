"""Finding a model by `package.module:callable`: what is found, and what an error says is near."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from sdk.cli import models
from sdk.errors import InputError

SOURCE = """
import torch

def linear():
    return torch.nn.Linear(3, 2)

class Holder:
    net = torch.nn.Linear(3, 2)

def broken():
    return torch.nn.Linear(3, "x")

def three():
    return 3

def example_inputs():
    return {"input": torch.ones(1, 3)}
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory, with a module and a package whose names no other test has."""
    (tmp_path / "cli_nets.py").write_text(SOURCE)
    (tmp_path / "cli_package").mkdir()
    (tmp_path / "cli_package" / "__init__.py").touch()
    (tmp_path / "cli_package" / "inner.py").write_text("import torch\nnet = torch.nn.ReLU()\n")
    (tmp_path / "cli_syntax.py").write_text("def f(:\n")
    (tmp_path / "cli_needs.py").write_text("\nimport cli_no_such_package\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", list(sys.path))
    for name in [name for name in sys.modules if name.startswith("cli_")]:
        monkeypatch.delitem(sys.modules, name)
    return tmp_path


@pytest.mark.parametrize(
    "name", ["cli_nets:linear", "cli_nets:Holder.net", "cli_package.inner:net"]
)
def test_finds_callables_objects_and_attributes(name: str) -> None:
    assert isinstance(models.find(name).model, torch.nn.Module)


def test_takes_example_inputs_of_the_module() -> None:
    example = models.find("cli_nets:linear").example
    assert example is not None
    assert torch.equal(example()["input"], torch.ones(1, 3))
    assert models.find("cli_package.inner:net").example is None


def test_an_onnx_file_is_a_path(folder: Path) -> None:
    (folder / "net.onnx").touch()
    assert models.find("net.onnx").model == Path("net.onnx")


@pytest.mark.parametrize(
    ("name", "what", "fix"),
    [
        ("cli_net:linear", "There is no module 'cli_net'", "did you mean 'cli_nets'?"),
        ("cli_package.iner:net", "There is no module", "did you mean 'cli_package.inner'?"),
        ("cli_nets.inner:net", "There is no module 'cli_nets.inner'", "look at the files in"),
        ("cli_nets:linea", "cli_nets has no 'linea'", "did you mean 'linear'?"),
        ("cli_nets:zzz", "cli_nets has no 'zzz'", "linear"),
        ("cli_nets.py:linear", "is not understood", "write cli_nets:linear"),
        ("./cli_package/inner.py:net", "is not understood", "write cli_package.inner:net"),
        ("cli_nets", "is not understood", "write cli_nets:callable"),
        ("nett.onnx", "There is no file nett.onnx", "check the path"),
        ("cli_nets:broken", "cli_nets:broken() failed", "cli_nets.py:11"),
        ("cli_syntax:f", "failed while it was imported", "cli_syntax.py:1"),
        ("cli_needs:f", "failed while it was imported", "cli_needs.py:2"),
    ],
)
def test_an_error_says_what_is_near(name: str, what: str, fix: str) -> None:
    with pytest.raises(InputError) as caught:
        models.find(name)
    assert what in caught.value.what
    assert fix in str(caught.value.fix)


def test_names_an_onnx_file_that_is_near(folder: Path) -> None:
    (folder / "mobilenet.onnx").touch()
    with pytest.raises(InputError, match=r"did you mean 'mobilenet\.onnx'"):
        models.find("mobilnet.onnx")


def test_what_is_not_a_model_is_named_by_its_type() -> None:
    with pytest.raises(InputError, match="is not a model") as caught:
        models.find("cli_nets:three")
    assert caught.value.got == "int"
