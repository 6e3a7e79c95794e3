"""What `edge doctor` tells of the native kernels."""

from __future__ import annotations

import json

import pytest
from kernel_rows import native

from sdk.cli import main
from sdk.errors import KernelMissingError
from sdk.kernels import status as module
from sdk.kernels.library import Library
from sdk.kernels.status import status


def test_a_library_is_told_with_its_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    library = native()
    monkeypatch.setattr(module, "at_hand", lambda: library)
    with library.capped("portable"):
        found = status()
    assert found.library == str(library.path)
    assert found.instructions == "portable"
    assert found.kernels["edge::scale_add"] == 1
    assert found.engines["onnxruntime"] == "ready"


def test_without_a_compiler_openvino_has_no_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    library = native()
    monkeypatch.setattr(module, "at_hand", lambda: library)
    monkeypatch.setattr(module, "is_extension_built", lambda _: False)
    monkeypatch.setattr(module, "missing_tools", lambda: ("C++ compiler",))
    assert status().engines["openvino"] == "there is no C++ compiler to build it"


@pytest.mark.parametrize(
    ("missing", "reason"),
    [(("CMake",), "there is no CMake to build it"), ((), "built when it is first needed")],
)
def test_no_library_is_told(
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    missing: tuple[str, ...],
    reason: str,
) -> None:
    monkeypatch.setattr(module, "at_hand", lambda: None)
    monkeypatch.setattr(module, "missing_tools", lambda: missing)
    main(["doctor", "--json"])
    told = json.loads(capfd.readouterr().out)["kernels"]
    assert told["library"] is None
    assert told["reason"] == reason
    assert (told["fix"] is not None) == bool(missing)


def test_a_broken_library_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> Library:
        raise KernelMissingError("The library of kernels has another interface.", fix="upgrade")

    monkeypatch.setattr(module, "at_hand", broken)
    found = status()
    assert found.library is None
    assert "another interface" in (found.reason or "")
    assert found.fix == "upgrade"
