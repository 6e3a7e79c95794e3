"""TensorRT-RTX builds without a GPU, at every precision, and what it refuses.

That the engine file is what was asked for shows in the library's own words: it refuses a network
whose types, shapes or capabilities it cannot have. Its figures come from ONNX Runtime on the same
model; nothing here runs on a GPU.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from cases import CASES, Case
from engines import row
from programs import program_of
from torch import Tensor, nn

from sdk.compilers.capture import capture, example_feed
from sdk.compilers.precision import to_precision
from sdk.compilers.tensorrt import compile_program, open_check
from sdk.errors import EdgeError, InputError, UnsupportedOperatorError
from sdk.nvidia import gpu
from sdk.parity import FIDELITY, TOLERANCE, compare
from sdk.signature import Dim
from sdk.target import Target

FRESH = (1, 2, 3)
QUICK = ("conv_bn_relu",)
NO_KERNEL = "TensorRT-RTX 1.7 infers no types for a transposed convolution in bf16"
NO_IMPORT = "TensorRT-RTX 1.7 imports a GRU with a constant one in fp32"
FAILS = {
    ("conv_transpose", "bf16"): NO_KERNEL,
    ("gru", "bf16"): NO_IMPORT,
    ("several", "fp8"): "sums of five products that cancel, of three bits each",
}


@pytest.fixture(autouse=True)
def _ahead_of_time() -> None:
    row("tensorrt:gpu:fp32").require()
    if gpu().capability is not None:
        pytest.skip("with a GPU the full library may build")


def _rows() -> list[Any]:
    rows = []
    for case in CASES:
        for precision in ("bf16", "int8", "fp8"):
            reason = FAILS.get((case.name, precision))
            marks = [] if case.name in QUICK else [pytest.mark.slow]
            marks += [pytest.mark.xfail(reason=reason)] if reason else []
            rows.append(pytest.param(case, precision, id=f"{case}-{precision}", marks=marks))
    return rows


@pytest.mark.parametrize(("case", "precision"), _rows())
def test_builds_and_computes_what_the_model_computes(
    case: Case, precision: str, tmp_path: Path
) -> None:
    target = Target.parse(f"tensorrt:gpu:{precision}:sm89")
    program, model = program_of(case, target), case.model()
    build = compile_program(program, target, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["model.rtx.engine"]
    assert build.requires["capabilities"] == "sm89"
    session = open_check(build, program, target, threads=1)
    fp32 = program.base or program
    for index in FRESH:
        feed = example_feed(model, case.inputs(index)) or {}
        got = session.run(feed)
        assert list(got) == [spec.name for spec in program.signature.outputs]
        assert compare(got, program.reference(feed), TOLERANCE[precision]).ok
        assert compare(got, fp32.reference(feed), FIDELITY[precision]).ok


class Words(nn.Module):
    """Token ids to logits, wide enough for groups of 128 weights."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.mix = nn.Embedding(50, 128), nn.Linear(128, 256)
        self.head = nn.Linear(256, 50)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(torch.relu(self.mix(self.embed(ids))))


class Linear(nn.Module):
    """A layer that most tests can do with."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


@functools.lru_cache
def _words() -> Any:
    torch.manual_seed(0)
    length = {"ids": {1: Dim("length", 2, 5, 12)}}
    return capture(Words().eval(), torch.randint(0, 50, (2, 5)), length)


@functools.lru_cache
def _linear() -> Any:
    torch.manual_seed(0)
    return capture(Linear().eval(), torch.randn(2, 8))


def _build(program: Any, target: str, folder: Path, **options: Any) -> Any:
    return compile_program(program, Target.parse(target), folder, **options)


@pytest.mark.parametrize(
    ("precision", "group"),
    [
        ("int4", 32),
        pytest.param("int4", 128, marks=pytest.mark.slow),
        pytest.param("w8", None, marks=pytest.mark.slow),
    ],
)
def test_weights_alone_are_kept_in_few_bits(
    precision: str, group: int | None, tmp_path: Path
) -> None:
    feed = {"ids": np.arange(14).reshape(2, 7) % 50}
    target = Target.parse(f"tensorrt:gpu:{precision}:sm86")
    program = to_precision(_words(), target, example=feed, group_size=group)
    build = compile_program(program, target, tmp_path)
    got = open_check(build, program, target, threads=1).run(feed)
    assert compare(got, program.reference(feed), TOLERANCE[precision]).ok


class Patches(nn.Module):
    """A picture to tokens: ONNX Runtime's basic passes give wrong values for its fp8 form."""

    def __init__(self) -> None:
        super().__init__()
        self.cut, self.mix = nn.Conv2d(3, 8, 4, 4), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.mix(self.cut(x).flatten(2).transpose(1, 2))


def test_the_stand_in_computes_fp8_pairs_as_they_are(tmp_path: Path) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 8, 8)
    feed, target = {"x": x.numpy()}, Target.parse("tensorrt:gpu:fp8:sm89")
    fp32 = capture(Patches().eval(), x)
    program = to_precision(fp32, target, example=feed, calibration=[feed])
    build = compile_program(program, target, tmp_path)
    got = open_check(build, program, target, threads=1).run(feed)
    np.testing.assert_allclose(got["output"], program.reference(feed)["output"], atol=1e-5)


class Nudge(nn.Module):
    """Adds what fp32 keeps, and bf16 rounds away."""

    def forward(self, x: Tensor) -> Tensor:
        return (x + 0.001) - x


def test_the_stand_in_rounds_to_bf16(tmp_path: Path) -> None:
    feed = {"x": np.ones((1, 2), np.float32)}
    program = capture(Nudge(), torch.ones(1, 2))
    for precision, sum_ in (("fp32", np.float32(1.001)), ("bf16", np.float32(1))):
        target = Target.parse(f"tensorrt:gpu:{precision}:sm89")
        half = to_precision(program, target, example=feed)
        build = compile_program(half, target, tmp_path)
        got = open_check(build, half, target, threads=1).run(feed)["output"]
        np.testing.assert_array_equal(got, np.full((1, 2), sum_ - 1, np.float32))


def test_int8_activations_are_symmetric_and_biases_float(tmp_path: Path) -> None:
    case = next(case for case in CASES if case.name == "conv_bn_relu")
    target = Target.parse("tensorrt:gpu:int8:sm89")
    program = program_of(case, target)
    compile_program(program, target, tmp_path)
    graph = onnx.load_from_string(program.lowered["tensorrt"][0]).graph
    tensors = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    pairs = [node for node in graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    zeros = [tensors[node.input[2]] for node in pairs]
    assert len(zeros) == 2 * 2 + 2  # two activations, two weights
    assert {zero.dtype.name for zero in zeros} == {"int8"}
    assert not any(zero.any() for zero in zeros)
    biases = [node.input[2] for node in graph.node if node.op_type == "Conv"]
    assert {tensors[name].dtype.name for name in biases} == {"float32"}


def test_a_program_quantized_for_another_engine_is_refused(tmp_path: Path) -> None:
    """The parser would read its unsigned values as signed ones, and say nothing."""
    case = next(case for case in CASES if case.name == "conv_bn_relu")
    program = program_of(case, Target.parse("onnxruntime:cpu:int8"))
    with pytest.raises(UnsupportedOperatorError, match="only has symmetric quantization"):
        _build(program, "tensorrt:gpu:int8:sm89", tmp_path)


@pytest.mark.parametrize(
    ("target", "capabilities"),
    [
        ("tensorrt:gpu:fp32", "sm80 and later"),
        ("tensorrt:gpu:fp32:sm80", "sm80"),
        ("tensorrt:gpu:fp32:sm86+sm120+sm86", "sm86+sm120"),
    ],
)
def test_the_build_says_what_it_is_tied_to(target: str, capabilities: str, tmp_path: Path) -> None:
    requires = _build(_linear(), target, tmp_path).requires
    assert requires["capabilities"] == capabilities
    assert requires["library"] == "tensorrt_rtx"
    assert requires["library_version"].count(".") == 3
    assert "-" in requires["platform"]


@pytest.mark.parametrize(
    ("target", "error", "says"),
    [
        ("tensorrt:gpu:fp16:sm_89", InputError, "did you mean 'sm89'?"),
        ("tensorrt:gpu:fp16:sm89+hopper", InputError, "use one of: sm75, sm80"),
        ("tensorrt:gpu:fp8:sm80", UnsupportedOperatorError, "fix: use tensorrt:gpu:fp8:sm89"),
        ("tensorrt:gpu:fp8:sm89+sm86", UnsupportedOperatorError, "sm86 have no fp8"),
        ("tensorrt:gpu:bf16:sm75", UnsupportedOperatorError, "sm75 have no bf16"),
    ],
)
def test_capabilities_that_do_not_fit_are_refused(
    target: str, error: type[EdgeError], says: str, tmp_path: Path
) -> None:
    with pytest.raises(error) as caught:
        _build(_linear(), target, tmp_path)
    assert says in str(caught.value)
    assert list(tmp_path.iterdir()) == []


class Rare(nn.Module):
    """An operator that TensorRT has not, between two others."""

    def forward(self, x: Tensor) -> Tensor:
        return ((x + 1).int() ^ 3) * 2


def test_an_operator_that_the_parser_refuses_is_named(tmp_path: Path) -> None:
    model = nn.Sequential(nn.ReLU(), Rare())
    program = capture(model, torch.randn(2, 3))
    with pytest.raises(UnsupportedOperatorError) as caught:
        _build(program, "tensorrt:gpu:fp32:sm89", tmp_path)
    text = str(caught.value)
    assert "does not take the operator BitwiseXor" in text
    assert "in module '1' at test_tensorrt_build.py:" in text
    assert "(x + 1).int() ^ 3" in text


def test_an_operator_that_the_builder_refuses_is_named(tmp_path: Path) -> None:
    case = next(case for case in CASES if case.name == "conv_transpose")
    target = Target.parse("tensorrt:gpu:bf16:sm89")
    with pytest.raises(UnsupportedOperatorError) as caught:
        compile_program(program_of(case, target), target, tmp_path)
    assert "node 'node_convolution'" in str(caught.value)


def test_a_type_that_tensorrt_has_not_is_refused(tmp_path: Path) -> None:
    program = capture(nn.Sigmoid(), torch.randn(2, 3, dtype=torch.float64))
    with pytest.raises(UnsupportedOperatorError, match=r"(?i)double|float64"):
        _build(program, "tensorrt:gpu:fp32:sm89", tmp_path)


def test_progress_reports_the_builders_phases(tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    report = lambda *step: seen.append(step)  # noqa: E731
    _build(_linear(), "tensorrt:gpu:fp32:sm89", tmp_path, progress=report)
    whole = [done for phase, done, _ in seen if phase == "building engine"]
    assert whole == list(range(1, len(whole) + 1))
    assert len(whole) > 1
    assert all(1 <= done <= total for _, done, total in seen)


def test_an_interruption_stops_the_build_and_comes_through(tmp_path: Path) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _build(_linear(), "tensorrt:gpu:fp32:sm89", tmp_path, progress=interrupt)
    assert list(tmp_path.iterdir()) == []


def test_the_stand_in_says_where_nodes_will_run_and_is_not_timed(tmp_path: Path) -> None:
    target = Target.parse("tensorrt:gpu:fp32:sm89")
    build = compile_program(_linear(), target, tmp_path)
    session = open_check(build, _linear(), target, threads=1)
    rows = session.placement()
    assert [(row.kind, row.device) for row in rows] == [("Gemm", "gpu")]
    assert rows[0].operator in build.sources
    with pytest.raises(EdgeError, match="cannot be timed"):
        session.profile({}, runs=1)
    session.close()
    with pytest.raises(EdgeError, match="closed"):
        session.run({"x": np.zeros((2, 8), np.float32)})
