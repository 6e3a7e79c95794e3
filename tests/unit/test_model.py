"""`predict` without an engine: a session that computes with NumPy stands in for one."""

from __future__ import annotations

import asyncio
import threading
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from handmade import MANIFEST, fill_folder, write_artifact

import sdk
from sdk import model as model_module
from sdk.artifact import GOLDEN, PROCESSOR, Artifact, pack_golden, publish, staging
from sdk.errors import (
    EngineError,
    EngineUnavailableError,
    InputError,
    KernelMissingError,
    ParityError,
)
from sdk.manifest import Function, KernelUse
from sdk.model import Model
from sdk.placement import FallbackWarning
from sdk.processor import Classification, ImageProcessor, Processor
from sdk.runtimes.session import Placement, fill
from sdk.signature import Dim, Signature, TensorSpec
from sdk.target import Availability, DeviceSupport, Target

BATCH = Dim("batch", 1, 1, 4)


def spec(name: str, *shape: int | Dim, dtype: str = "float32") -> TensorSpec:
    return TensorSpec(name, dtype, shape)


ONE = Signature((spec("x", BATCH, 3),), (spec("y", BATCH, 3),))
TWO = Signature((spec("a", BATCH), spec("b", BATCH)), (spec("sum", BATCH), spec("product", BATCH)))
IMAGES = Signature((spec("x", BATCH, 3, 2, 2),), (spec("y", BATCH, 2),))


class FakeSession:
    """Doubles, adds and multiplies, or means over pixels; counts the batches that it saw."""

    def __init__(self, signature: Signature) -> None:
        self.signature = signature
        self.batches: list[int] = []
        self.closed = False

    def run(self, feed: Mapping[str, Any], outputs: Mapping[str, Any] | None = None) -> Any:
        if self.closed:
            raise EngineError("The session is closed.")
        self.batches.append(len(next(iter(feed.values()))))
        return fill(self._compute(feed), outputs)

    def _compute(self, feed: Mapping[str, Any]) -> dict[str, Any]:
        if "a" in feed:
            return {"sum": feed["a"] + feed["b"], "product": feed["a"] * feed["b"]}
        x = feed["x"]
        if x.ndim == 2:
            return {"y": 2 * x}
        brightness = x.mean((1, 2, 3))
        return {"y": np.stack([brightness, 1 - brightness], 1).astype(np.float32)}

    def placement(self) -> list[Placement]:
        return [Placement("double", "Mul", "cpu", "numpy", "asked for", ("mul",))]

    def profile(self, *_: Any, **__: Any) -> Any:
        raise NotImplementedError

    def close(self) -> None:
        self.closed = True


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return write_artifact(tmp_path_factory.mktemp("model") / "model.edge")


@pytest.fixture
def make(artifact: Artifact) -> Any:
    """Makes models on a fake session."""

    def make(signature: Signature, processor: Processor | None = None, note: str = "") -> Model:
        target = Target("onnxruntime")
        session = FakeSession(signature)
        return Model(artifact, session, target, processor, note=note, threads=1)

    return make


X = np.arange(6, dtype=np.float32).reshape(2, 3)
LABELS = Processor("x", ImageProcessor((2, 2)), "y", Classification(("bright", "dark"), top=1))
WHITE, BLACK = np.full((4, 4, 3), 255, np.uint8), np.zeros((4, 4, 3), np.uint8)


def test_an_array_gives_an_array_and_a_mapping_a_mapping(make: Any) -> None:
    model = make(ONE)
    np.testing.assert_array_equal(model.predict(X), 2 * X)
    result = model.predict({"x": X})
    assert list(result) == ["y"]
    np.testing.assert_array_equal(result["y"], 2 * X)


def test_several_inputs_and_outputs(make: Any) -> None:
    a, b = np.float32([2, 3]), np.float32([4, 5])
    result = make(TWO).predict({"b": b, "a": a})
    np.testing.assert_array_equal(result["sum"], a + b)
    np.testing.assert_array_equal(result["product"], a * b)
    with pytest.raises(InputError, match="has 2 inputs") as caught:
        make(TWO).predict(a)
    assert caught.value.fix


def test_a_list_gives_a_list(make: Any) -> None:
    model = make(ONE)
    first, second = model.predict([X, {"x": X[:1]}])
    np.testing.assert_array_equal(first, 2 * X)
    np.testing.assert_array_equal(second["y"], 2 * X[:1])
    assert model.predict([]) == []


@pytest.mark.parametrize(
    "value",
    [X.astype(np.float64), X.astype(int), X[0], X[:, :2], np.tile(X, (3, 1)), X[:0], {"z": X}, {},
     {"x": X, "z": X}, {"x": X.tolist()}, {"x": None}],
)  # fmt: skip
def test_wrong_arrays_never_reach_the_engine(make: Any, value: Any) -> None:
    model = make(ONE)
    with pytest.raises(InputError):
        model.predict(value)
    assert model.session.batches == []


@pytest.mark.parametrize(
    "value", [1.0, np.float32(1), "photo.jpg", b"", None, (X, X), [[1.0, 2.0]]]
)
def test_raw_input_needs_a_processor(make: Any, value: Any) -> None:
    with pytest.raises(InputError, match="no processor") as caught:
        make(ONE).predict(value)
    assert "x: float32" in str(caught.value.expected)


def test_raw_input_gives_what_the_processor_declares(make: Any) -> None:
    model = make(IMAGES, LABELS)
    (label,) = model.predict(WHITE)
    assert (label.name, label.index) == ("bright", 0)
    assert [labels[0].name for labels in model.predict([BLACK, WHITE])] == ["dark", "bright"]


def test_raw_input_without_a_declaration_gives_rows(make: Any) -> None:
    model = make(IMAGES, Processor("x", ImageProcessor((2, 2))))
    np.testing.assert_allclose(model.predict(WHITE), [1, 0], atol=1e-6)
    rows = model.predict([WHITE, BLACK])
    np.testing.assert_allclose(rows, [[1, 0], [0, 1]], atol=1e-6)


def test_arrays_pass_by_the_processor(make: Any) -> None:
    x = np.full((1, 3, 2, 2), 0.25, np.float32)
    np.testing.assert_allclose(make(IMAGES, LABELS).predict(x), [[0.25, 0.75]])


def test_raw_and_arrays_mixed_in_a_list(make: Any) -> None:
    x = np.full((1, 3, 2, 2), 0.25, np.float32)
    labels, array = make(IMAGES, LABELS).predict([WHITE, x])
    assert labels[0].name == "bright"
    np.testing.assert_allclose(array, [[0.25, 0.75]])


def test_many_raw_inputs_go_in_batches(make: Any) -> None:
    model = make(IMAGES, LABELS)
    found = model.predict([WHITE, BLACK] * 5)
    assert model.session.batches == [4, 4, 2]
    assert [labels[0].name for labels in found] == ["bright", "dark"] * 5


@pytest.mark.parametrize("batch", [3, Dim("batch", 3, 3, 3)])
def test_a_fixed_batch_is_filled_up(make: Any, batch: int | Dim) -> None:
    fixed = Signature((spec("x", batch, 3, 2, 2),), (spec("y", batch, 2),))
    model = make(fixed, LABELS)
    found = model.predict([WHITE, BLACK, WHITE, BLACK])
    assert model.session.batches == [3, 3]
    assert [labels[0].name for labels in found] == ["bright", "dark", "bright", "dark"]
    assert model.predict(BLACK)[0].name == "dark"


def test_outputs_without_a_row_for_each_image(make: Any) -> None:
    model = make(IMAGES, Processor("x", ImageProcessor((2, 2))))
    model.session._compute = lambda feed: {"y": np.float32(1).reshape(())}
    with pytest.raises(InputError, match="no row for each"):
        model.predict([WHITE, BLACK])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_finite_inputs_where_the_processor_says_so(make: Any, bad: float) -> None:
    x = np.full((1, 3, 2, 2), bad, np.float32)
    for value in (x, {"x": x}):
        with pytest.raises(InputError, match="NaN or infinity"):
            make(IMAGES, LABELS).predict(value)
    free = replace(LABELS, post=None, finite=False)
    assert not np.isfinite(make(IMAGES, free).predict(x)).any()


def test_fresh_outputs(make: Any) -> None:
    model = make(ONE)
    first, second = model.predict(X), model.predict(X)
    first[:] = -1
    np.testing.assert_array_equal(second, 2 * X)


def test_buffers_are_filled(make: Any) -> None:
    model = make(ONE)
    buffer = np.full((2, 3), -1, np.float32)
    assert model.predict(X, outputs={"y": buffer}) is buffer
    np.testing.assert_array_equal(buffer, 2 * X)
    assert model.predict({"x": X}, outputs={"y": buffer})["y"] is buffer


def test_some_buffers(make: Any) -> None:
    a = np.float32([2, 3])
    buffer = np.zeros(2, np.float32)
    result = make(TWO).predict({"a": a, "b": a}, outputs={"product": buffer})
    assert result["product"] is buffer
    np.testing.assert_array_equal(buffer, a * a)
    np.testing.assert_array_equal(result["sum"], a + a)


def test_buffers_of_any_layout(make: Any) -> None:
    wide = np.zeros((3, 4), np.float32)
    make(ONE).predict(X, outputs={"y": wide.T[::2]})
    np.testing.assert_array_equal(wide[:, ::2], 2 * X.T)
    np.testing.assert_array_equal(wide[:, 1::2], 0)


def test_a_buffer_may_be_the_input(make: Any) -> None:
    x = X.copy()
    make(ONE).predict(x, outputs={"y": x})
    np.testing.assert_array_equal(x, 2 * X)


def read_only() -> Any:
    array = np.zeros((2, 3), np.float32)
    array.flags.writeable = False
    return array


@pytest.mark.parametrize(
    "buffer",
    [np.zeros((2, 3)), np.zeros((2, 3), np.int32), np.zeros(6, np.float32),
     np.zeros((2, 4), np.float32), np.zeros((5, 3), np.float32), np.zeros((1, 3), np.float32),
     np.zeros((4, 3), np.float32), np.zeros((0, 3), np.float32), read_only(),
     np.broadcast_to(np.float32(0), (2, 3)), [[0.0] * 3] * 2, None],
)  # fmt: skip
def test_wrong_buffers(make: Any, buffer: Any) -> None:
    """None is cast into, broadcast into or left half full."""
    before = None if buffer is None else np.array(buffer)
    with pytest.raises(InputError, match="does not fit"):
        make(ONE).predict(X, outputs={"y": buffer})
    if before is not None:
        np.testing.assert_array_equal(np.array(buffer), before)


def test_a_buffer_for_no_output(make: Any) -> None:
    with pytest.raises(InputError, match="no output 'z'"):
        make(ONE).predict(X, outputs={"z": np.zeros((2, 3), np.float32)})


def test_buffers_that_share_memory(make: Any) -> None:
    a, both = np.float32([2, 3]), np.zeros((2, 2), np.float32)
    feed = {"a": a, "b": a}
    for pair in ((both[0], both[0]), (both[0], both.ravel()[1:3])):
        with pytest.raises(InputError, match="share memory"):
            make(TWO).predict(feed, outputs=dict(zip(("sum", "product"), pair, strict=True)))
    make(TWO).predict(feed, outputs={"sum": both[:, 0], "product": both[:, 1]})
    np.testing.assert_array_equal(both, np.stack([a + a, a * a], 1))


@pytest.mark.parametrize("value", [WHITE, [WHITE], [X], []])
def test_buffers_are_not_dropped_silently(make: Any, value: Any) -> None:
    with pytest.raises(InputError, match="one run on arrays"):
        make(IMAGES, LABELS).predict(value, outputs={"y": np.zeros((1, 2), np.float32)})


def test_apredict(make: Any) -> None:
    model = make(ONE)

    async def main() -> list[Any]:
        return await asyncio.gather(*(model.apredict(X + i) for i in range(20)))

    for i, result in enumerate(asyncio.run(main())):
        np.testing.assert_array_equal(result, 2 * (X + i))


def test_apredict_raises_what_predict_raises(make: Any) -> None:
    with pytest.raises(InputError):
        asyncio.run(make(ONE).apredict("text"))


def test_threads_get_their_own_results(make: Any) -> None:
    model, wrong = make(ONE), []

    def work(seed: int) -> None:
        for i in range(200):
            x = np.full((2, 3), 1000 * seed + i, np.float32)
            if not np.array_equal(model.predict(x), 2 * x):
                wrong.append((seed, i))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_closing(make: Any) -> None:
    with make(ONE) as model:
        model.predict(X)
    model.close()
    with pytest.raises(EngineError, match="closed"):
        model.predict(X)


def test_a_note_explains_every_placement(make: Any) -> None:
    assert make(ONE).placement()[0].reason == "asked for"
    (row,) = make(ONE, note="npu is not there").placement()
    assert (row.reason, row.device, row.nodes) == ("npu is not there", "cpu", ("mul",))


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> list[Target]:
    """An engine with a CPU only; the targets that sessions were opened for."""
    targets: list[Target] = []

    def open_session(
        file: Path, signature: Signature, target: Target, *, threads: int, kernels: object
    ) -> Any:
        if target.device != "cpu":
            raise EngineUnavailableError("no such device")
        targets.append(target)
        return FakeSession(signature)

    monkeypatch.setattr(model_module, "open_session", open_session)
    found = Availability("1", {"cpu": DeviceSupport(("fp32",))})
    monkeypatch.setattr(model_module, "probe", lambda engine: found)
    return targets


def test_forbid(artifact: Artifact, device: list[Target]) -> None:
    with pytest.raises(EngineUnavailableError):
        sdk.load(artifact, device="npu", fallback="forbid")
    assert device == []


def test_warn(artifact: Artifact, device: list[Target]) -> None:
    with pytest.warns(FallbackWarning, match="npu is not there") as caught:
        model = sdk.load(artifact, device="npu")
    assert caught[0].filename == __file__
    assert device == [model.target] == [Target("onnxruntime", "cpu")]
    assert "npu is not there" in model.placement()[0].reason


def test_allow(artifact: Artifact, device: list[Target]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = sdk.load(artifact, device="gpu", fallback="allow")
    assert "gpu is not there" in model.placement()[0].reason


@pytest.mark.parametrize("wanted", ["auto", "cpu"])
def test_what_is_there_needs_no_fallback(
    artifact: Artifact, device: list[Target], wanted: str
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = sdk.load(artifact, device=wanted)
    assert model.placement()[0].reason == "asked for"


@pytest.mark.parametrize(
    "options",
    [{"device": "tpu"}, {"device": "CPU"}, {"fallback": "maybe"}, {"threads": 0}, {"threads": -1}],
)
def test_unknown_options(artifact: Artifact, device: list[Target], options: Any) -> None:
    with pytest.raises(InputError):
        sdk.load(artifact, **options)


def test_an_engine_with_no_cpu(
    artifact: Artifact, device: list[Target], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = Availability("1", {"gpu": DeviceSupport(("fp32",))})
    monkeypatch.setattr(model_module, "probe", lambda engine: found)
    with pytest.raises(EngineUnavailableError, match="neither 'npu' nor a CPU"):
        sdk.load(artifact, device="npu")


def test_missing_kernels(tmp_path: Path, device: list[Target]) -> None:
    manifest = replace(MANIFEST, kernels=(KernelUse("edge::x", 2, "native"),))
    path = write_artifact(tmp_path / "kernels.edge", manifest=manifest).path
    with pytest.raises(KernelMissingError, match="edge::x version 2"):
        sdk.load(path)
    decomposed = replace(MANIFEST, kernels=(KernelUse("edge::x", 2, "decomposed"),))
    sdk.load(write_artifact(path, overwrite=True, manifest=decomposed).path)


def unproved(path: Path, scale: float = 1.0) -> Path:
    """An artifact that was checked on a stand-in when it was compiled, for a model that doubles."""
    kept = replace(MANIFEST.candidates[0], checked_on="evaluator")
    functions = {"main": Function(ONE, "model.onnx")}
    manifest = replace(MANIFEST, candidates=(kept,), functions=functions)
    with staging(path, overwrite=False) as folder:
        fill_folder(folder / "artifact")
        (folder / "artifact" / PROCESSOR).unlink()
        golden = pack_golden([({"x": X}, {"y": scale * 2 * X})])
        (folder / "artifact" / GOLDEN).write_bytes(golden)
        return publish(folder / "artifact", manifest, path, overwrite=False).path


def test_what_was_checked_on_a_stand_in_is_proved_when_it_is_loaded(
    tmp_path: Path, device: list[Target]
) -> None:
    model = sdk.load(unproved(tmp_path / "right.edge"))
    np.testing.assert_array_equal(model.predict(X), 2 * X)
    with pytest.raises(ParityError, match=r"stand-in \(evaluator\)"):
        sdk.load(unproved(tmp_path / "wrong.edge", scale=1.5))


def test_what_the_files_are_tied_to_is_checked_before_they_are_loaded(
    tmp_path: Path, device: list[Target], monkeypatch: pytest.MonkeyPatch
) -> None:
    def check_requires(target: Target, requires: Mapping[str, str]) -> None:
        raise EngineUnavailableError(f"{target.engine} is not {requires['library']}")

    monkeypatch.setattr(model_module, "check_requires", check_requires)
    manifest = replace(MANIFEST, requires={"library": "2.0"})
    path = write_artifact(tmp_path / "tied.edge", manifest=manifest).path
    with pytest.raises(EngineUnavailableError, match=r"is not 2\.0"):
        sdk.load(path)
    assert device == []


def test_threads_reach_the_model(artifact: Artifact, device: list[Target]) -> None:
    assert sdk.load(artifact, threads=3).threads == 3
    assert sdk.load(artifact).threads >= 1
