"""Weight-only layers by the kernel `edge::linear_nbits` instead of ONNX Runtime's operator."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from test_weight_only import batches, compressed

from sdk.compilers import lower, onnx_linear
from sdk.compilers.onnx_linear import Shape
from sdk.kernels.library import found_library
from sdk.manifest import KernelUse
from sdk.parity import TOLERANCE, compare
from sdk.runtimes import open_session
from sdk.target import Target

USE = KernelUse("edge::linear_nbits", 1, "native")


@pytest.fixture(autouse=True)
def _kernels() -> None:
    pytest.importorskip("onnxruntime")
    library, reason = found_library()
    if library is None or "linear_nbits" not in library.kernels:
        pytest.skip(reason or "the library has no linear_nbits")


@pytest.mark.parametrize(
    ("name", "precision", "layers"),
    [
        *((name, p, 4) for name in ("decoder", "products") for p in ("w8", "int4", "int2")),
        ("filled", "w8", 3),  # columns that ONNX Runtime fills up; it keeps what it embeds with
    ],
)
def test_layers_are_the_kernels(
    name: str, precision: str, layers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The embedding's weight is the head's, once in the file; the numbers are the program's."""
    monkeypatch.setattr(onnx_linear, "is_faster", lambda _shape: True)
    program = replace(compressed(name, precision), kernel_policy="native")
    target = Target("onnxruntime", precision=precision)
    build = lower(program, target, tmp_path / "native")
    assert build.kernels == (USE,)
    kinds = Counter(node.op_type for node in onnx.load(build.file).graph.node)
    assert (kinds["linear_nbits"], kinds["MatMulNBits"]) == (layers, 4 - layers)
    session = open_session(build.file, program.signature, target, threads=1, kernels=build.kernels)
    for feed in batches(3):
        parity = compare(session.run(feed), program.reference(feed), TOLERANCE[precision])
        assert parity.ok, parity
    session.close()
    usual = lower(replace(program, kernel_policy="auto"), target, tmp_path / "usual")
    assert build.file.stat().st_size < 1.3 * usual.file.stat().st_size + 16_000


def test_slower_layers_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_linear, "is_faster", lambda shape: shape.columns == 40)
    program = replace(compressed("decoder", "int4"), kernel_policy="native")
    build = lower(program, Target("onnxruntime", precision="int4"), tmp_path / "build")
    kinds = Counter(node.op_type for node in onnx.load(build.file).graph.node)
    assert (kinds["linear_nbits"], kinds["MatMulNBits"]) == (1, 3)


@pytest.mark.parametrize("policy", ["auto", "portable", "decomposed"])
def test_other_policies_do_not_ask(
    policy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_linear, "is_faster", lambda _shape: pytest.fail("asked"))
    program = replace(compressed("decoder", "int4"), kernel_policy=policy)
    build = lower(program, Target("onnxruntime", precision="int4"), tmp_path / "build")
    assert build.kernels == ()


def test_measuring_decides() -> None:
    """Both sides run; which one is faster is the machine's affair."""
    assert onnx_linear.is_faster(Shape(64, 48, 4, 32)) in (True, False)


def test_blocks_come_apart() -> None:
    rng = np.random.default_rng(0)
    for bits in (2, 4, 8):
        shape = Shape(64, 5, bits, 32)
        blocks = rng.integers(0, 256, (5, 2, 32 * bits // 8), dtype=np.uint8)
        values = onnx_linear.unpacked(blocks, shape)
        assert values.shape == (5, 64)
        short = onnx_linear.unpacked(blocks, Shape(40, 5, bits, 64))
        np.testing.assert_array_equal(short, values[:, :40])
        assert int(values[2, 33]) == int(blocks[2, 1, bits // 8 if bits == 8 else 0]) >> (
            bits % 8
        ) & ((1 << bits) - 1)
