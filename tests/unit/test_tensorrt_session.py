"""The TensorRT session on stand-ins for both bindings: order of calls, way of the data, errors.

No test here runs on a GPU; see `nvidia_stand_in.py` for what the stand-ins can show.
"""

from __future__ import annotations

import gc
import re
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from nvidia_stand_in import CudaRuntime, Engine, Status, TensorRt

from sdk.errors import EngineError, InputError, SignatureMismatchError
from sdk.runtimes import tensorrt_cuda, tensorrt_io, tensorrt_session
from sdk.runtimes.tensorrt_cuda import Cuda
from sdk.runtimes.tensorrt_session import TensorRtSession
from sdk.signature import Dim, Signature, TensorSpec
from sdk.target import Target

TARGET = Target.parse("tensorrt:gpu:fp32")


def signature(first: int | Dim) -> Signature:
    a, b, y = (TensorSpec(name, "float32", (first, 3)) for name in "aby")
    return Signature((a, b), (y,))


class Bench:
    """A session, and the stand-ins below it."""

    def __init__(self, folder: Path, first: int | Dim = 2, *, capturable: bool = True) -> None:
        self.cuda = CudaRuntime()
        self.engine = Engine(self.cuda, capturable)
        self.file = folder / "model.engine"
        self.file.write_bytes(b"engine")
        self.first = first

    def open(self) -> TensorRtSession:
        trt = TensorRt(self.engine)
        return TensorRtSession(self.file, signature(self.first), TARGET, trt, Cuda(self.cuda))

    def allocations(self) -> int:
        return self.cuda.calls["cudaMalloc"] + self.cuda.calls["cudaMallocHost"]


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


@pytest.fixture
def dynamic(tmp_path: Path) -> Bench:
    return Bench(tmp_path, Dim("batch", 1, 2, 4))


def feed(rows: int, seed: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal((rows, 3), dtype=np.float32) for name in "ab"}


def test_buffers_are_allocated_once_and_the_graph_is_recorded_once(bench: Bench) -> None:
    session = bench.open()
    assert bench.allocations() == 6  # host and device, for two inputs and one output
    for seed in range(5):
        x = feed(2, seed)
        np.testing.assert_array_equal(session.run(x)["y"], x["a"] + x["b"])
    assert bench.allocations() == 6
    assert bench.cuda.calls["cudaGraphInstantiate"] == 1
    assert bench.cuda.calls["cudaGraphLaunch"] == 5
    assert bench.cuda.calls["execute_async_v3"] == 2  # once on zeros, once for the record
    assert {row.reason for row in session.placement()} == {"asked for; in one CUDA graph"}


def test_outputs_are_fresh_arrays(bench: Bench) -> None:
    session = bench.open()
    first = session.run(feed(2, 1))["y"]
    kept = first.copy()
    session.run(feed(2, 2))
    np.testing.assert_array_equal(first, kept)


def test_outputs_go_into_the_callers_buffers(bench: Bench) -> None:
    session, x = bench.open(), feed(2)
    buffer = np.empty((2, 3), np.float32)
    assert session.run(x, {"y": buffer})["y"] is buffer
    np.testing.assert_array_equal(buffer, x["a"] + x["b"])
    with pytest.raises(InputError, match="does not fit"):
        session.run(x, {"y": np.empty((3, 3), np.float32)})


def test_shapes_are_set_for_each_call_and_no_graph_is_recorded(dynamic: Bench) -> None:
    session = dynamic.open()
    (context,) = dynamic.engine.contexts
    assert context.shapes == {"a": (4, 3), "b": (4, 3)}  # buffers are for the largest
    for rows in (1, 4, 3):
        x = feed(rows, rows)
        np.testing.assert_array_equal(session.run(x)["y"], x["a"] + x["b"])
        assert context.shapes["a"] == (rows, 3)
    assert dynamic.allocations() == 6
    assert dynamic.cuda.calls["cudaStreamBeginCapture"] == 0
    assert session.placement()[0].reason == "asked for; no CUDA graph: shapes vary"


def test_a_session_that_cannot_be_recorded_runs_without_a_graph(tmp_path: Path) -> None:
    bench = Bench(tmp_path, capturable=False)
    session, x = bench.open(), feed(2)
    np.testing.assert_array_equal(session.run(x)["y"], x["a"] + x["b"])
    assert "cannot be recorded" in session.placement()[0].reason


@pytest.mark.parametrize("at", ["cudaGraphInstantiate", "cudaStreamEndCapture"])
def test_a_recording_that_fails_is_said_and_costs_nothing_else(bench: Bench, at: str) -> None:
    bench.cuda.fails[at] = Status.cudaErrorLaunch
    session, x = bench.open(), feed(2)
    np.testing.assert_array_equal(session.run(x)["y"], x["a"] + x["b"])
    assert bench.cuda.calls["cudaGraphLaunch"] == 0
    assert f"no CUDA graph: CUDA failed in {at}" in session.placement()[0].reason


def test_an_engine_that_refuses_to_be_recorded_runs_without_a_graph(bench: Bench) -> None:
    begin = bench.cuda.cudaStreamBeginCapture

    def refuse(*args: Any) -> Any:
        bench.engine.runs = False
        return begin(*args)

    bench.cuda.cudaStreamBeginCapture = refuse  # type: ignore[method-assign]
    session, x = bench.open(), feed(2)
    bench.engine.runs = True
    np.testing.assert_array_equal(session.run(x)["y"], x["a"] + x["b"])
    assert bench.cuda.recording is None
    assert "no CUDA graph: TensorRT refused to run" in session.placement()[0].reason
    session.close()
    assert bench.cuda.live == {}


def test_close_frees_everything_and_a_closed_session_says_so(bench: Bench) -> None:
    session = bench.open()
    session.run(feed(2))
    session.close()
    session.close()
    assert bench.cuda.live == {}
    with pytest.raises(EngineError, match="closed"):
        session.run(feed(2))
    with pytest.raises(EngineError, match="closed"):
        session.placement()


def test_a_session_that_is_dropped_frees_its_memory(bench: Bench) -> None:
    session = bench.open()
    session.run(feed(2))
    del session
    gc.collect()
    assert bench.cuda.live == {}


def test_a_load_that_fails_frees_what_it_took(bench: Bench) -> None:
    bench.cuda.fails["cudaMalloc"] = Status.cudaErrorMemoryAllocation
    with pytest.raises(EngineError, match="cudaMalloc") as caught:
        bench.open()
    assert "free memory" in str(caught.value)
    assert bench.cuda.live == {}


def test_an_engine_file_that_does_not_load_gives_the_librarys_words(bench: Bench) -> None:
    bench.file.write_bytes(b"garbage")
    with pytest.raises(EngineError, match="magic tag") as caught:
        bench.open()
    assert "does not matter" not in str(caught.value)


def test_other_names_than_the_manifests_are_refused(bench: Bench) -> None:
    bench.engine.get_tensor_name = lambda index: "xby"[index]  # type: ignore[method-assign]
    with pytest.raises(SignatureMismatchError):
        bench.open()


def test_errors_of_a_run_are_ours(dynamic: Bench) -> None:
    session = dynamic.open()
    with pytest.raises(EngineError, match="refuses the shape"):
        session.run(feed(5))
    dynamic.engine.runs = False
    with pytest.raises(EngineError, match="refused to run"):
        session.run(feed(2))
    dynamic.engine.runs = True
    dynamic.cuda.fails["cudaStreamSynchronize"] = Status.cudaErrorLaunch
    with pytest.raises(EngineError, match="cudaStreamSynchronize"):
        session.run(feed(2))


def test_calls_from_several_threads_take_turns(dynamic: Bench) -> None:
    session = dynamic.open()
    wrong: list[int] = []

    def work(rows: int) -> None:
        for seed in range(50):
            x = feed(rows, seed)
            if not np.array_equal(session.run(x)["y"], x["a"] + x["b"]):
                wrong.append(rows)

    threads = [threading.Thread(target=work, args=(rows,)) for rows in (1, 2, 3, 4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_placement_has_kernels_and_the_nodes_of_the_model(bench: Bench) -> None:
    total, reformat = bench.open().placement()
    assert (total.operator, total.kind, total.device) == ("sum", "ElementWise", "gpu")
    assert (total.kernel, total.nodes) == ("add_f32", ("node_add", "node_cast"))
    assert (reformat.operator, reformat.nodes) == ("reformat", ())


def test_profile_has_layers_and_the_time_of_each_call(bench: Bench) -> None:
    session = bench.open()
    seen = session.profile(feed(2), runs=3)
    assert [call.engine for call in seen.calls] == [500.0] * 3
    assert [(row.operator, row.durations) for row in seen.operators] == [
        ("sum", (250.0,) * 3),
        ("reformat", (125.0,) * 3),
    ]
    assert seen.operators[1].starts == (250.0,) * 3
    assert all(call.binding <= call.wall for call in seen.calls)
    assert bench.allocations() == 6  # the profiling context shares the buffers
    x = feed(2, 9)
    np.testing.assert_array_equal(session.run(x)["y"], x["a"] + x["b"])


def test_the_bindings_have_what_the_session_calls() -> None:
    """The stand-ins must not be alone in having a function."""
    cuda = pytest.importorskip("cuda.bindings.runtime")
    source = Path(tensorrt_cuda.__file__).read_text()
    names = set(re.findall(r'_call\("(cuda\w+)"|_cuda\.(cuda\w+)', source))
    missing = [name for pair in names for name in pair if name and not hasattr(cuda, name)]
    assert missing == []
    assert hasattr(cuda.cudaMemcpyKind, "cudaMemcpyHostToDevice")
    assert hasattr(cuda.cudaMemcpyKind, "cudaMemcpyDeviceToHost")
    assert hasattr(cuda.cudaError_t, "cudaErrorMemoryAllocation")


def test_the_library_has_what_the_session_calls() -> None:
    trt = pytest.importorskip("tensorrt_rtx")
    text = Path(tensorrt_session.__file__).read_text() + Path(tensorrt_io.__file__).read_text()
    for owner, pattern in (
        (trt.IExecutionContext, r"(?:_context|\bcontext)\.(\w+)"),
        (trt.ICudaEngine, r"\bengine\.(\w+)"),
        (trt, r"trt\.(\w+)"),
    ):
        missing = [name for name in re.findall(pattern, text) if not hasattr(owner, name)]
        assert missing == []
