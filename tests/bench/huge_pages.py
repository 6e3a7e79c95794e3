"""What huge pages bring: the same artifacts, with and without, request by request in turn.

    python tests/bench/huge_pages.py ARTIFACT ... [--rounds 16] [--new-tokens 64] [--json]

Each side is a process that loads the artifact, one after the other, as memory that an engine once
freed tells nothing. A prompt of 100 random tokens is asked of both, each first in turn, plain
decoding on one thread. Times are CPU microseconds of a token, medians; `ratio` is the one without
over the one with, the median over prompts with its 95 % interval. `moved` is what lies on huge
pages, of all that the process has in memory, and `load` are seconds from opening the artifact to
its first token.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
from intervals import median_of

import sdk
from sdk.runtimes.huge_pages import SWITCH

PROMPT = 100


@dataclass(frozen=True)
class Row:
    """One artifact."""

    artifact: str
    without: float
    with_pages: float
    ratio: tuple[float, float, float]
    """Median and interval."""
    moved: float
    """MB."""
    memory: float
    load: tuple[float, float]
    """Without and with."""


def serve(artifact: str, switch: str, asked: Connection) -> None:
    """Load and say how long that took; answer prompts with times; say what memory is like."""
    os.environ[SWITCH] = switch
    start = time.perf_counter()
    with sdk.load(artifact, threads=1) as model:
        model.generate([0], max_new_tokens=1, eos=())
        asked.send(time.perf_counter() - start)
        while (request := asked.recv()) is not None:
            prompt, count = request
            tokens = model.generate(prompt, max_new_tokens=1, eos=()).tokens
            start = time.process_time()
            model.generate([*prompt, *tokens], max_new_tokens=count, eos=())
            asked.send((time.process_time() - start) / count * 1e6)
        asked.send(memory())


def memory() -> tuple[float, float]:
    """MB on huge pages, and in all."""
    rows = [line.split() for line in Path("/proc/self/smaps_rollup").read_text().splitlines()[1:]]
    found = {row[0]: int(row[1]) / 1024 for row in rows}
    return found["AnonHugePages:"], found["Rss:"]


def measure(artifact: str, rounds: int, new_tokens: int) -> Row:
    """Both sides in turn."""
    context = multiprocessing.get_context("spawn")
    ends, loads = [], []
    for switch in ("0", "1"):
        ours, theirs = context.Pipe()
        context.Process(target=serve, args=(artifact, switch, theirs), daemon=True).start()
        ends.append(ours)
        loads.append(ours.recv())
    times = np.array([ask(ends, seed, new_tokens) for seed in range(rounds + 1)])[1:]
    for end in ends:
        end.send(None)
    _, (moved, total) = (end.recv() for end in ends)
    without, with_pages = np.median(times, axis=0)
    return Row(
        Path(artifact).name, without, with_pages, median_of(times[:, 0] / times[:, 1]),
        moved, total, (loads[0], loads[1]),
    )  # fmt: skip


def ask(ends: Sequence[Connection], seed: int, new_tokens: int) -> list[float]:
    """The times of both for one prompt."""
    prompt, times = np.random.default_rng(seed).integers(0, 200, PROMPT).tolist(), [0.0, 0.0]
    for side in (seed % 2, 1 - seed % 2):
        ends[side].send((prompt, new_tokens))
        times[side] = ends[side].recv()
    return times


def printed(row: Row) -> str:
    median, low, high = row.ratio
    return (
        f"{row.artifact:36} {row.without:7.0f} {row.with_pages:7.0f} {median:5.2f}"
        f" [{low:.2f}, {high:.2f}] {row.moved:5.0f} {row.memory:6.0f}"
        f" {row.load[0]:6.2f} {row.load[1]:5.2f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("artifacts", nargs="+")
    parser.add_argument("--rounds", type=int, default=16)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rows = [measure(path, options.rounds, options.new_tokens) for path in options.artifacts]
    if options.json:
        print(json.dumps([asdict(row) for row in rows]))
        return
    print(f"{'artifact':36} {'without':>7} {'with':>7} ratio{'':14} moved     of   load  with")
    for row in rows:
        print(printed(row))


if __name__ == "__main__":
    main()
