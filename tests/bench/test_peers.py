"""The verdict on a row: what holds, what is even within noise, and what misses."""

from __future__ import annotations

import pytest
from peers import Row

from sdk.timing import Latency

TIMES = Latency.of([100.0, 101.0, 102.0])


def row(ratio: float, interval: tuple[float, float], ours: int = 0, peer: int = 0) -> Row:
    return Row(
        model="m", engine="onnxruntime", threads=1, peer="p", metric="top-1", kept="int8",
        accuracy=0.9, peer_accuracy=0.9, only_ours_right=ours, only_peer_right=peer,
        bytes=1, peer_bytes=1, latency=TIMES, peer_latency=TIMES, ratio=ratio, interval=interval,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("measured", "verdict"),
    [
        (row(0.9, (0.85, 0.95)), "holds"),
        (row(0.99, (0.98, 1.01)), "holds"),
        (row(1.01, (0.99, 1.03)), "even"),
        (row(1.05, (1.01, 1.09)), "misses"),
        (row(0.9, (0.85, 0.95), ours=2, peer=3), "holds"),  # one image is chance
        (row(0.9, (0.85, 0.95), ours=2, peer=30), "misses"),
    ],
)
def test_a_row_is_judged_by_latency_and_accuracy(measured: Row, verdict: str) -> None:
    assert measured.verdict == verdict
