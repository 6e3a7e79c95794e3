"""Each ONNX operator that is imported, against ONNX Runtime, on random inputs and batch sizes."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest
import torch
from onnx_row import Row
from operators import ROWS

from sdk.compilers.capture import capture
from sdk.compilers.onnx_ops import OPERATORS
from sdk.signature import Dim

ort = pytest.importorskip("onnxruntime")
BATCH = Dim("batch", 1, 2, 8)


def expected(file: Path, feed: dict[str, Any]) -> list[Any]:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = ort.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    return list(session.run(None, feed))


def dynamic_of(row: Row, feed: dict[str, Any]) -> dict[str, dict[int, Dim]]:
    return {name: {0: BATCH} for name in feed} if row.dynamic else {}


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_operator_is_imported(row: Row, tmp_path: Path) -> None:
    """The captured program, not only the module, computes what ONNX Runtime computes."""
    file = tmp_path / "row.onnx"
    onnx.save(row.model(), file)
    feed = row.feed(0)
    program = capture(file, feed, dynamic_of(row, feed))
    run = program.exported.module(check_guards=False)
    for index, batch in enumerate((None, 5, 1) if row.dynamic else (None, None)):
        feed = row.feed(index, batch)
        with torch.no_grad():
            result = run(*map(torch.from_numpy, feed.values()))
        got = result if isinstance(result, (tuple, list)) else (result,)
        for ours, want in zip(got, expected(file, feed), strict=True):
            assert str(ours.dtype).removeprefix("torch.") == str(want.dtype)
            assert tuple(ours.shape) == want.shape
            np.testing.assert_allclose(ours.numpy(), want, rtol=2e-4, atol=2e-5)


def test_names_are_distinct() -> None:
    assert len({str(row) for row in ROWS}) == len(ROWS)


def test_every_operator_has_a_row() -> None:
    """Or stands in one of the graphs below, since it takes no input that a caller could give."""
    in_graphs = {"ConstantOfShape", "DequantizeLinear", "Range"}
    assert set(OPERATORS) - {row.op for row in ROWS} == in_graphs


def graph(text: str) -> Any:
    """A model written in ONNX's text format, opset 17."""
    return onnx.parser.parse_model('<ir_version: 8, opset_import: ["" : 17]>\n' + text)


GRAPHS = {
    "shape_to_reshape": """g (float[N, 4, 6] x) => (float[N, A, B] y) <int64[1] zero = {0},
        int64[2] rest = {8, 3}, int64 axis = {0}> {
          s = Shape(x)  n = Gather<axis = 0>(s, zero)  t = Concat<axis = 0>(n, rest)
          y = Reshape(x, t) }""",
    "shape_arithmetic": """g (float[N, 4, 6] x) => (float[N, A] y) <int64[1] one = {1},
        int64[1] two = {2}, int64[1] three = {3}, int64[1] zero = {0}> {
          s = Shape(x)  n = Slice(s, zero, one)  hw = Slice(s, one, three)
          m = ReduceProd<keepdims = 1>(hw)  t = Concat<axis = 0>(n, m)  y = Reshape(x, t) }""",
    "constant_of_shape": """g (float[N, 3] x) => (float[N, 3] y) {
          s = Shape(x)  c = ConstantOfShape<value = float[1] {2.5}>(s)  y = Add(x, c) }""",
    "range_over_an_axis": """g (float[N, 5] x) => (float[N, 5] y) <int64 start = {0},
        int64 stop = {5}, int64 step = {1}> {
          r = Range(start, stop, step)  f = Cast<to = 1>(r)  y = Mul(x, f) }""",
    "range_over_the_batch": """g (float[N, 5] x) => (float[N, 5] y) <int64 start = {0},
        int64 step = {1}, int64[1] one = {1}, int64 first = {0}> {
          s = Shape(x)  n = Gather<axis = 0>(s, first)  r = Range(start, n, step)
          f = Cast<to = 1>(r)  c = Unsqueeze(f, one)  y = Add(x, c) }""",
    "quantized_pair": """g (float[N, 5] x) => (float[N, 5] y) <float scale = {0.05},
        uint8 zero = {100}> {
          q = QuantizeLinear(x, scale, zero)  y = DequantizeLinear(q, scale, zero) }""",
    "quantized_weight": """g (float[N, 2] x) => (float[N, 3] y) <float[3] scale = {0.1, 0.2, 0.3},
        int8[2, 3] w = {1, -2, 3, 4, 5, -127}, int8[3] zero = {0, 0, 0}> {
          d = DequantizeLinear<axis = 1>(w, scale, zero)  y = MatMul(x, d) }""",
    "one_value_twice": """g (float[N, 3] x) => (float[N, 3] y, float[N, 3] z) {
          y = Relu(x)  z = Identity(y) }""",
    "resize_to_another_input": """g (float[N, 2, 4, 4] x, float[N, 2, 7, 9] like)
        => (float[N, 2, 7, 9] y) <int64[1] two = {2}, int64[1] four = {4}, int64[1] zero = {0}> {
          s = Shape(like)  hw = Slice(s, two, four)  t = Shape(x)  nc = Slice(t, zero, two)
          size = Concat<axis = 0>(nc, hw)  y = Resize<mode = "linear">(x, , , size) }""",
}  # fmt: skip


@pytest.mark.parametrize("name", GRAPHS)
def test_graph_is_imported(name: str, tmp_path: Path) -> None:
    """What no single node shows: shapes that are computed, with any batch, and pairs."""
    model, file = graph(GRAPHS[name]), tmp_path / "graph.onnx"
    onnx.save(model, file)
    rng = np.random.default_rng(zlib.crc32(name.encode()))

    def feed(batch: int) -> dict[str, Any]:
        sizes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim][1:]
                 for v in model.graph.input}  # fmt: skip
        return {
            n: rng.standard_normal((batch, *size), dtype=np.float32) for n, size in sizes.items()
        }

    example = feed(2)
    program = capture(file, example, {key: {0: BATCH} for key in example})
    run = program.exported.module(check_guards=False)
    for batch in (1, 2, 7):
        given = feed(batch)
        result = run(*map(torch.from_numpy, given.values()))
        got = result if isinstance(result, (tuple, list)) else (result,)
        for ours, want in zip(got, expected(file, given), strict=True):
            np.testing.assert_allclose(ours.detach().numpy(), want, rtol=2e-4, atol=2e-5)
