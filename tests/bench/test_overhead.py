"""Promise: `Model.predict` on an array costs at most 15 us more than the engine's own call."""

from __future__ import annotations

import pytest
from engines import row
from overhead import ENGINES, GOAL, measure


@pytest.mark.bench
@pytest.mark.parametrize("engine", ENGINES)
def test_predict_adds_little(engine: str) -> None:
    row(f"{engine}:cpu:fp32").require()
    for found in measure(engine, threads=1, runs=1000):
        assert found.direct.p50 < 1000, "the promise is about models of under 1 ms"
        assert found.difference <= GOAL, f"{found.model}: {found.difference:.1f} us"
