"""Memory of generation: the cache is allocated once, and requests leave nothing behind."""

from __future__ import annotations

import gc
import random
from pathlib import Path

import pytest
from language_models import write_folder

import sdk

REQUESTS, WARM = 10_000, 1_000
MOST = 5_000_000
"""Bytes by which a process may grow over all requests."""


def resident() -> int:
    """Bytes of this process in memory."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_ten_thousand_requests_leave_nothing_behind(engine: str, tmp_path: Path) -> None:
    """Prompts and drafts of all lengths, plain and with each drafter that has a memory of its own.

    The first requests bind each width once, and fill the drafters' tables.
    """
    if not Path("/proc/self/statm").is_file():
        pytest.skip("this system does not tell how much memory a process has")
    sdk.compile(
        write_folder("llama", tmp_path / "folder"), task="text-generation", target=engine,
        output=tmp_path / "m.edge", threads=1,
    )  # fmt: skip
    drafters, rng = (None, "prompt_lookup", "trigram"), random.Random(0)
    with sdk.load(tmp_path / "m.edge", threads=1) as model:
        before, most = 0, 0
        for index in range(WARM + REQUESTS):
            if index == WARM:
                before = resident()
            prompt = rng.choices(range(2, 290), k=rng.randint(1, 60))
            model.generate(
                prompt, max_new_tokens=rng.randint(1, 4), drafter=drafters[index % 3], eos=(),
                num_draft_tokens=rng.randint(1, 4), temperature=float(index % 2),
            )  # fmt: skip
            if index % 1000 == 999:
                most = max(most, resident())
        assert most - before < MOST
