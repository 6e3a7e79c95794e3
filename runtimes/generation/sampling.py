"""Distributions and draws by the native kernel `sample_verify`, where its library is at hand.

The same tokens as by NumPy, and 3 to 10 times faster for a vocabulary of 50,000: sums are added in
another order, which moves a draw only where a random number falls within rounding of a border.
"""

from __future__ import annotations

import ctypes
from functools import cache

import numpy as np
from numpy.typing import NDArray

from sdk.errors import EdgeError
from sdk.kernels.library import Library, at_hand
from sdk.runtimes.generation.config import GenerationConfig

KERNEL = "sample_verify"
FLOAT32, FLOAT64 = 0, 8
"""edge_dtype."""


class NativeSampling:
    """The functions of `sample_verify.h` on NumPy arrays."""

    def __init__(self, library: Library) -> None:
        integer, number, pointer = ctypes.c_int64, ctypes.c_double, ctypes.c_void_p
        row = [pointer, ctypes.c_int32, integer, number, integer, number, number, pointer]
        self._row = library.function("edge_sample_row", row, ctypes.c_int32)
        self._pick = library.function("edge_sample_pick", [pointer, integer, number], integer)

    def row(
        self, scores: NDArray[np.float32] | NDArray[np.float64], config: GenerationConfig
    ) -> NDArray[np.float64] | None:
        """`truncated(scores, config)`; None where scores over the temperature are not finite."""
        dtype = FLOAT32 if scores.dtype == np.float32 else FLOAT64
        dense = np.ascontiguousarray(scores, np.float32 if dtype == FLOAT32 else np.float64)
        found = np.empty(len(dense))
        failed = self._row(
            dense.ctypes.data, dtype, len(dense), config.temperature, config.top_k, config.top_p,
            config.min_p, found.ctypes.data,
        )  # fmt: skip
        return None if failed else found

    def pick(self, row: NDArray[np.float64], u: float) -> int:
        """`pick(row, u)`."""
        dense = np.ascontiguousarray(row, np.float64)
        return int(self._pick(dense.ctypes.data, len(dense), u))


@cache
def native() -> NativeSampling | None:
    """None where there is no library, or one without the kernel: nothing is built for it."""
    try:
        library = at_hand()
        return NativeSampling(library) if library and KERNEL in library.kernels else None
    except EdgeError:
        return None
