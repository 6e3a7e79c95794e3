"""The Core ML runtime, with a stand-in for coremltools: its API as on a Mac, nothing behind it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from sdk.apple import file_names, from_file, to_file
from sdk.errors import EngineError, EngineUnavailableError, InputError, SignatureMismatchError
from sdk.runtimes import coreml
from sdk.signature import Array, Signature, TensorSpec
from sdk.target import Target

SIGNATURE = Signature(
    (TensorSpec("ids", "int64", (2,)), TensorSpec("on.off", "bool", ())),
    (TensorSpec("ids", "int64", (2,)), TensorSpec("score", "float32", ())),
)
FEED: dict[str, Array] = {"ids": np.array([3, -1]), "on.off": np.array(True)}


class MLNeuralEngineComputeDevice:
    """Named as coremltools' own, which the runtime reads."""


class MLCPUComputeDevice:
    """Named as coremltools' own, which the runtime reads."""


class MLModel:
    """Adds its state, counts its calls; refuses what Core ML has no dtype for."""

    def __init__(self, path: str, compute_units: str) -> None:
        self.path, self.compute_unit = path, compute_units
        self.seen: list[Mapping[str, Array]] = []

    def get_spec(self) -> Any:
        """Only what the session reads."""
        ports = {"input": ("ids", "on_off"), "output": ("ids_out", "score"), "state": ("total",)}
        named = {k: [SimpleNamespace(name=n) for n in names] for k, names in ports.items()}
        return SimpleNamespace(description=SimpleNamespace(**named))

    def make_state(self) -> dict[str, int]:
        return {"total": 0}

    def get_compiled_model_path(self) -> str:
        return self.path + "c"

    def predict(
        self, data: Mapping[str, Array], state: dict[str, int] | None = None
    ) -> dict[str, Array]:
        if any(x.dtype not in (np.float32, np.int32) or x.ndim == 0 for x in data.values()):
            raise RuntimeError("unsupported array")
        assert state is not None
        self.seen.append(data)
        state["total"] += 1
        return {"score": np.float32([state["total"]]), "ids_out": data["ids"] + 1}


def operation(kind: str, name: str) -> Any:
    """As the compute plan lists it."""
    return SimpleNamespace(operator_name=kind, outputs=[SimpleNamespace(name=name)])


class MLComputePlan:
    """Two operators and a constant."""

    block = SimpleNamespace(
        operations=[
            operation("const", "w"), operation("ios18.conv", "c"), operation("ios18.gather", "g"),
        ]
    )  # fmt: skip
    model_structure = SimpleNamespace(
        program=SimpleNamespace(functions={"main": SimpleNamespace(block=block)})
    )

    @classmethod
    def load_from_path(cls, path: str, compute_units: str) -> MLComputePlan:
        assert (path, compute_units) == ("package.mlpackagec", "npu units")
        return cls()

    def get_compute_device_usage_for_mlprogram_operation(self, operation: Any) -> Any:
        devices = {
            "ios18.conv": MLNeuralEngineComputeDevice(),
            "ios18.gather": MLCPUComputeDevice(),
        }
        device = devices.get(operation.operator_name)
        return device and SimpleNamespace(preferred_compute_device=device)

    def get_estimated_cost_for_mlprogram_operation(self, operation: Any) -> Any:
        return SimpleNamespace(weight=0.75 if operation.operator_name == "ios18.conv" else 0.25)


@pytest.fixture
def session(monkeypatch: pytest.MonkeyPatch) -> coreml.CoreMlSession:
    modules = {
        "coremltools": SimpleNamespace(
            models=SimpleNamespace(MLModel=MLModel),
            ComputeUnit=SimpleNamespace(CPU_AND_NE="npu units", CPU_ONLY="cpu units"),
        ),
        "coremltools.models.compute_plan": SimpleNamespace(MLComputePlan=MLComputePlan),
    }
    monkeypatch.setattr(coreml, "require", lambda module, purpose: modules[module])
    file = Path("package.mlpackage/Manifest.json")
    return coreml.open_session(file, SIGNATURE, Target.parse("coreml:npu:fp16"), threads=1)


def test_arrays_cross_the_border_and_come_back(session: coreml.CoreMlSession) -> None:
    got = session.run(FEED)
    (seen,) = session._model.seen
    assert {name: (str(x.dtype), x.tolist()) for name, x in seen.items()} == {
        "ids": ("int32", [3, -1]),
        "on_off": ("int32", [1]),
    }
    assert (str(got["ids"].dtype), got["ids"].tolist()) == ("int64", [4, 0])
    assert (got["score"].shape, float(got["score"])) == ((), 1.0)
    buffer = np.zeros(2, np.int64)
    assert session.run(FEED, {"ids": buffer})["ids"] is buffer
    assert buffer.tolist() == [4, 0]


def test_a_state_lives_on_where_it_is_passed(session: coreml.CoreMlSession) -> None:
    state = session.make_state()
    assert [float(session.run(FEED, state=state)["score"]) for _ in range(3)] == [1, 2, 3]
    assert [float(session.run(FEED)["score"]) for _ in range(2)] == [1, 1]


def test_the_compute_plan_is_the_placement(session: coreml.CoreMlSession) -> None:
    rows = [(row.operator, row.kind, row.device, row.reason) for row in session.placement()]
    assert rows == [
        ("c", "conv", "npu", "asked for"),
        ("g", "gather", "cpu", "Core ML prefers the cpu"),
    ]
    profile = session.profile(FEED, runs=3)
    assert len(profile.calls) == 3
    first, second = profile.operators
    for call, conv, gather, start in zip(
        profile.calls, first.durations, second.durations, second.starts, strict=True
    ):
        assert (conv, gather, start) == pytest.approx(
            (0.75 * call.engine, 0.25 * call.engine, 0.75 * call.engine)
        )
    assert "estimate" in profile.notes[0]


def test_failures_and_a_closed_session_are_ours(
    session: coreml.CoreMlSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("no such device")

    monkeypatch.setattr(session, "_predict", fail)
    with pytest.raises(EngineError, match="Core ML failed while running: no such device"):
        session.run(FEED)
    session.close()
    for call in (lambda: session.run(FEED), session.placement, session.make_state):
        with pytest.raises(EngineError, match="closed"):
            call()


def test_another_models_file_is_refused(session: coreml.CoreMlSession) -> None:
    other = Signature(SIGNATURE.inputs[:1], SIGNATURE.outputs)
    with pytest.raises(SignatureMismatchError):
        coreml.CoreMlSession(Path("package.mlpackage"), other, Target.parse("coreml:npu:fp16"))


def test_file_names_are_identifiers_and_unique() -> None:
    specs = [TensorSpec(name, "float32", (1,)) for name in ("a.b", "a_b", "any", "0", "_x")]
    assert file_names(specs) == ["a_b", "a_b_out", "value_any", "value_0", "value__x"]
    assert file_names(specs[:1], taken=["a_b"]) == ["a_b_out"]


def test_whole_numbers_beyond_int32_are_refused_and_small_ones_kept() -> None:
    (spec, _) = SIGNATURE.inputs
    edge = np.array([2**31 - 1, -(2**31)])
    assert to_file({"ids": edge}, [spec])["ids"].tolist() == edge.tolist()
    with pytest.raises(InputError, match="cannot hold"):
        to_file({"ids": edge + 1}, [spec])
    assert to_file({"ids": np.zeros(0, np.int64)}, [spec])["ids"].dtype == np.int32


def test_outputs_that_are_no_numbers_stay_so() -> None:
    specs = [TensorSpec("flag", "bool", (2,)), TensorSpec("half", "float16", (1,))]
    made = from_file([np.int32([0, 1]), np.float16([0.5])], specs)
    assert made["flag"].tolist() == [False, True]
    assert made["half"].dtype == np.float16


@pytest.mark.parametrize(
    ("system", "machine", "devices", "run"),
    [("Linux", "x86_64", ["cpu", "gpu", "npu"], False),
     ("Darwin", "arm64", ["cpu", "gpu", "npu"], True),
     ("Darwin", "x86_64", ["cpu", "gpu"], True)],
)  # fmt: skip
def test_probe(
    system: str, machine: str, devices: list[str], run: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(coreml, "installed", lambda _: True)
    monkeypatch.setattr(coreml.importlib.metadata, "version", lambda _: "9.0")
    monkeypatch.setattr(coreml.platform, "system", lambda: system)
    monkeypatch.setattr(coreml.platform, "machine", lambda: machine)
    found = coreml.probe()
    assert list(found.devices) == devices
    for name, support in found.devices.items():
        assert support.compile
        assert support.run is run
        assert support.checked_on == ("engine" if run else "evaluator")
        assert ("fp32" in support.precisions) is (name != "npu")
        assert run or support.fix


def test_probe_without_coremltools(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coreml, "installed", lambda _: False)
    assert coreml.probe().fix == "pip install 'edge-sdk[coreml]'"


@pytest.mark.parametrize(("release", "fits"), [("15.1", True), ("14.7.2", False), ("", True)])
def test_files_for_a_later_system_are_refused(
    release: str, fits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(coreml.platform, "mac_ver", lambda: (release, ("", "", ""), ""))
    if fits:
        coreml.check_requires({"deployment": "iOS18"})
        return
    with pytest.raises(EngineUnavailableError, match=r"(?s)macOS 15 or later.*macOS 14\.7\.2"):
        coreml.check_requires({"deployment": "iOS18"})
