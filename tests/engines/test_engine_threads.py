"""One model, many threads; buffers; closing while others run; results that stay what they were."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from engines import row
from torch import Tensor, nn

import sdk
from sdk.runtimes.binding import bind

ENGINES = ("onnxruntime", "openvino", "torch")
THREADS, CALLS = 8, 50
BATCH = sdk.Dim("batch", 1, 1, 8)


class Net(nn.Module):
    """A small classifier with two outputs and a dynamic batch."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        features = torch.relu(self.conv(x)).mean((2, 3))
        return {"logits": self.head(features), "features": features}


@pytest.fixture(scope="module", params=ENGINES)
def artifact(request: pytest.FixtureRequest, tmp_path_factory: Any) -> tuple[nn.Module, Path]:
    row(f"{request.param}:cpu:fp32").require()
    torch.manual_seed(0)
    model = Net().eval()
    path = tmp_path_factory.mktemp(request.param) / "m.edge"
    sdk.compile(
        model,
        inputs=torch.randn(2, 3, 8, 8),
        target=request.param,
        output=path,
        dynamic={"x": {0: BATCH}},
        threads=1,
    )
    return model, path


@pytest.fixture
def model(artifact: tuple[nn.Module, Path]) -> Iterator[sdk.Model]:
    with sdk.load(artifact[1], threads=1) as loaded:
        yield loaded


def inputs(seed: int) -> np.ndarray[Any, Any]:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((1 + seed % 8, 3, 8, 8), dtype=np.float32)


def reference(model: nn.Module, x: np.ndarray[Any, Any]) -> dict[str, np.ndarray[Any, Any]]:
    with torch.no_grad():
        return {name: value.numpy() for name, value in model(torch.from_numpy(x)).items()}


def test_threads_get_their_own_answers(artifact: tuple[nn.Module, Path], model: sdk.Model) -> None:
    """Each thread has its own inputs, of sizes that change from call to call."""
    feeds = {seed: inputs(seed) for seed in range(THREADS * CALLS)}
    wants = {seed: reference(artifact[0], x) for seed, x in feeds.items()}
    start = threading.Barrier(THREADS)

    def work(thread: int) -> list[tuple[int, dict[str, Any]]]:
        start.wait()
        seeds = range(thread * CALLS, (thread + 1) * CALLS)
        return [(seed, model.predict(feeds[seed])) for seed in seeds]

    with ThreadPoolExecutor(THREADS) as pool:
        done = [result for results in pool.map(work, range(THREADS)) for result in results]
    assert len(done) == THREADS * CALLS
    for seed, got in done:
        for name, want in wants[seed].items():
            np.testing.assert_allclose(got[name], want, rtol=1e-3, atol=1e-5)


def test_results_are_fresh(model: sdk.Model) -> None:
    x = inputs(7)
    first = model.predict(x)
    kept = {name: array.copy() for name, array in first.items()}
    second = model.predict(inputs(15))
    for name, array in first.items():
        np.testing.assert_array_equal(array, kept[name])
        assert not np.shares_memory(array, second[name])
        array[...] = np.nan
    third = model.predict(x)
    for name, array in third.items():
        np.testing.assert_array_equal(array, kept[name])


def test_result_does_not_alias_the_input(tmp_path: Path, artifact: Any, model: sdk.Model) -> None:
    """A model that returns its input still returns an array of its own."""
    engine = model.target.engine
    echo = nn.Identity()
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    sdk.compile(echo, inputs=x, target=engine, output=tmp_path / "echo.edge", threads=1)
    with sdk.load(tmp_path / "echo.edge", threads=1) as loaded:
        y = loaded.predict(x)
        assert not np.shares_memory(x, y)
        y[...] = 0
        np.testing.assert_array_equal(loaded.predict(x), x)


def test_buffers_are_filled(artifact: tuple[nn.Module, Path], model: sdk.Model) -> None:
    x = inputs(3)
    want = reference(artifact[0], x)
    logits = np.full((4, 5), np.nan, np.float32)
    got = model.predict(x, outputs={"logits": logits})
    assert got["logits"] is logits
    np.testing.assert_allclose(logits, want["logits"], rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(got["features"], want["features"], rtol=1e-3, atol=1e-5)
    wide = np.full((4, 10), np.nan, np.float32)
    model.predict(x, outputs={"logits": wide[:, ::2]})
    np.testing.assert_allclose(wide[:, ::2], want["logits"], rtol=1e-3, atol=1e-5)
    assert np.isnan(wide[:, 1::2]).all()


def test_a_bound_call_keeps_its_arrays(model: sdk.Model) -> None:
    x = inputs(3)
    outputs = {"logits": np.empty((len(x), 5), np.float32),
               "features": np.empty((len(x), 8), np.float32)}  # fmt: skip
    call = bind(model.session, {"x": x.copy()}, outputs)
    others = [np.zeros_like(x) for _ in range(100)]  # they would lie where it was
    call()
    assert not np.any(others)
    np.testing.assert_array_equal(outputs["logits"], model.predict(x)["logits"])


@pytest.mark.parametrize(
    ("name", "buffer"),
    [
        ("scores", np.zeros((4, 5), np.float32)),
        ("logits", np.zeros((4, 5), np.float64)),
        ("logits", np.zeros((3, 5), np.float32)),
        ("logits", np.zeros((4, 1, 5), np.float32)),
        ("logits", np.zeros((1, 5), np.float32)),
        ("logits", np.broadcast_to(np.zeros(5, np.float32), (4, 5))),
        ("logits", [[0.0] * 5] * 4),
    ],
    ids=["name", "dtype", "batch", "rank", "small", "readonly", "list"],
)
def test_buffer_that_does_not_fit_is_refused(name: str, buffer: Any, model: sdk.Model) -> None:
    with pytest.raises(sdk.InputError):
        model.predict(inputs(3), outputs={name: buffer})
    assert model.predict(inputs(3))["logits"].shape == (4, 5)


def test_closing_while_others_run_is_an_error_for_them(
    artifact: tuple[nn.Module, Path],
) -> None:
    """Calls that are under way end; later ones raise EngineError; nothing crashes."""
    model = sdk.load(artifact[1], threads=1)
    x, want = inputs(3), reference(artifact[0], inputs(3))["logits"]
    started = threading.Semaphore(0)

    def work(_: int) -> sdk.EngineError:
        for _ in range(100_000):
            try:
                got = model.predict(x)["logits"]
            except sdk.EngineError as error:
                return error
            started.release()
            np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-5)
        raise AssertionError("the model was never closed")

    with ThreadPoolExecutor(THREADS) as pool:
        futures = [pool.submit(work, i) for i in range(THREADS)]
        for _ in range(5 * THREADS):
            assert started.acquire(timeout=30)
        model.close()
        errors = [future.result(timeout=60) for future in futures]
    assert all("The session is closed" in str(error) for error in errors)


def test_closed_model_says_so(artifact: tuple[nn.Module, Path]) -> None:
    model = sdk.load(artifact[1], threads=1)
    model.predict(inputs(0))
    model.close()
    model.close()
    with pytest.raises(sdk.EngineError, match="The session is closed"):
        model.predict(inputs(0))
    with pytest.raises(sdk.EngineError, match="The session is closed"):
        model.placement()
