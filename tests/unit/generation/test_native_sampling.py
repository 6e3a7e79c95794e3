"""Native sampling gives what NumPy gives: the same distributions, the same tokens."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import numpy as np
import pytest
from kernel_rows import native as native_library

from sdk.kernels.library import Library
from sdk.runtimes.generation import sampling, transforms, uniforms
from sdk.runtimes.generation.config import GenerationConfig
from sdk.runtimes.generation.sampling import NativeSampling

SIZES = (1, 2, 7, 64, 65, 513, 4999, 50_257)
TRUNCATIONS = (
    {}, {"top_k": 1}, {"top_k": 50}, {"top_p": 0.9}, {"top_p": 0.3, "min_p": 0.02},
    {"top_k": 700, "top_p": 0.95}, {"min_p": 0.1}, {"top_p": 0.999},
)  # fmt: skip


@pytest.fixture(params=["portable", "avx2", "avx512"])
def fast(request: pytest.FixtureRequest) -> Iterator[NativeSampling]:
    library = native_library()
    if request.param not in library.isas:
        pytest.skip(f"this processor has no {request.param}")
    with library.capped(request.param):
        yield NativeSampling(library)


def rows() -> Iterator[np.ndarray]:
    """Peaked, flat, with ties, with banned tokens; float32 and float64."""
    rng = np.random.default_rng(5)
    for size, scale in product(SIZES, (0.0, 0.1, 3.0, 40.0)):
        row = (scale * rng.standard_normal(size)).astype(np.float32)
        yield row
        yield row.round()
        banned = row.astype(np.float64)
        banned[1::3] = -np.inf
        yield banned


def test_same_distributions_and_tokens(fast: NativeSampling) -> None:
    rng = np.random.default_rng(6)
    for row, setting in product(rows(), TRUNCATIONS):
        config = GenerationConfig(temperature=0.7, **setting)
        want, got = transforms.by_numpy(row, config), fast.row(row, config)
        assert got is not None
        np.testing.assert_array_equal(got > 0, want > 0)
        np.testing.assert_allclose(got, want, rtol=1e-12, atol=0)
        for u in (0.0, *rng.random(3), 1 - 2.0**-53):
            assert fast.pick(got, u) == uniforms.pick_by_numpy(want, u)


def test_layouts_that_are_not_dense(fast: NativeSampling) -> None:
    wide = np.random.default_rng(7).standard_normal((2, 600)).astype(np.float32)
    config = GenerationConfig(temperature=1.0, top_k=20)
    for row in (wide[0, ::2], wide[:, 3], wide[1, 1:], wide[0, ::-1]):
        got = fast.row(row, config)
        np.testing.assert_allclose(got, transforms.by_numpy(row, config), rtol=1e-12)
        assert fast.pick(got[::-1], 0.4) == uniforms.pick_by_numpy(got[::-1], 0.4)


def test_rows_that_are_no_distributions_are_left_to_numpy(fast: NativeSampling) -> None:
    config = GenerationConfig(temperature=1.0)
    for bad in (np.nan, np.inf):
        assert fast.row(np.array([0.0, bad, 1.0]), config) is None
    assert fast.row(np.full(3, -np.inf), config) is None


def test_weights_need_not_sum_to_one(fast: NativeSampling) -> None:
    row = np.zeros(2000)
    row[[3, 1500]] = 3.0, 1.0
    assert [fast.pick(row, u) for u in (0.0, 0.7, 0.76, 1 - 2.0**-53)] == [3, 3, 1500, 1500]


def test_pipeline_takes_it(fast: NativeSampling, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    class Counting(NativeSampling):
        def row(self, *arguments: object) -> object:
            calls.append("row")
            return super().row(*arguments)

        def pick(self, *arguments: object) -> int:
            calls.append("pick")
            return super().pick(*arguments)

    logits = np.random.default_rng(8).standard_normal(300).astype(np.float32)
    pipeline = transforms.Transforms(GenerationConfig(temperature=0.8, top_p=0.9))
    state = pipeline.start([1, 2])
    tokens = []
    for stand_in in (None, Counting(native_library())):
        for module in (transforms, uniforms):
            monkeypatch.setattr(module, "native", lambda found=stand_in: found)
        row = pipeline.apply(state, logits)
        tokens.append([uniforms.Uniforms(3).draw(row, position) for position in range(40)])
    assert tokens[0] == tokens[1]
    assert calls == ["row", *["pick"] * 40]


def test_without_a_library_numpy_does_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "at_hand", lambda: None)
    assert sampling.native.__wrapped__() is None


def test_a_library_without_the_kernel_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    library = Library.__new__(Library)
    library.kernels = {}
    monkeypatch.setattr(sampling, "at_hand", lambda: library)
    assert sampling.native.__wrapped__() is None
