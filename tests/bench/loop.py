"""Microseconds that our loop adds to a pass of the target, on an engine that answers at once.

    python tests/bench/loop.py ARTIFACT [--rounds 300] [--megabytes 50] [--json]

ARTIFACT is a language model; its engine's calls are left out, and all logits are alike, so that a
drafter that copies is always right. In their place `--megabytes` of memory are read, as an engine
reads its weights, so that the loop finds the caches as it does in life: no longer its own. That
time is not counted. CPU time, the least of several requests: what other work on the machine adds
is none of the loop's.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import sdk
from sdk.runtimes.generation.budget import Adaptive, CostTable, Fixed
from sdk.runtimes.generation.cached import Cached
from sdk.runtimes.generation.config import GenerationConfig
from sdk.runtimes.generation.contracts import BudgetPolicy, Drafter
from sdk.runtimes.generation.drafters.prompt_lookup import PromptLookupDrafter
from sdk.runtimes.generation.drafters.trigram import TrigramDrafter
from sdk.runtimes.generation.in_place import decoder
from sdk.runtimes.generation.loop import Generation
from sdk.runtimes.generation.trigram_table import TrigramTable
from sdk.runtimes.session import Session
from sdk.signature import Array

REQUESTS = 7
PROMPT = (3, 4, 5, 6, 7, 8)
COSTS = CostTable({1: 1.0, 2: 1.1, 8: 1.7})


class Instant:
    """A session whose calls only read memory: token 7 is always the most probable."""

    def __init__(self, session: Session, megabytes: int) -> None:
        self.signature = session.signature
        self.in_place = getattr(session, "in_place", False)
        self._weights = np.ones(megabytes << 18, np.float32)
        self.spent = 0.0
        """CPU seconds in calls."""

    def bind(
        self, _inputs: Mapping[str, Array], outputs: Mapping[str, Array]
    ) -> Callable[[], None]:
        """Answers once and for all."""
        for array in outputs.values():
            array[:] = 0
        outputs["logits"][:, 7] = 1

        def call() -> None:
            start = time.process_time()
            self._weights.max(initial=0)
            self.spent += time.process_time() - start

        return call if len(self._weights) else lambda: None


@dataclass(frozen=True)
class Row:
    """One way to generate."""

    name: str
    microseconds: float
    """Per round."""
    tokens: float
    """Per round."""


def measure(engine: Instant, rounds: int) -> list[Row]:
    """Plain, with copies under a fixed and an adaptive budget, and with trigrams."""
    session = decoder(engine)  # type: ignore[arg-type]
    lookup, trigram = PromptLookupDrafter(), TrigramDrafter(TrigramTable(session.vocabulary))
    ways: dict[str, tuple[Drafter | None, Callable[[], BudgetPolicy] | None]] = {
        "plain": (None, None),
        "prompt lookup, 4 tokens": (lookup, lambda: Fixed(4)),
        "prompt lookup, adaptive": (lookup, lambda: Adaptive(COSTS)),
        "trigram tree, 4 nodes": (trigram, lambda: Fixed(4)),
    }
    rows = []
    for name, (drafter, budget) in ways.items():
        least, tokens = float("inf"), 0.0
        for _ in range(REQUESTS):
            session.rollback(0)
            made = Generation(
                Cached(session), PROMPT, GenerationConfig(max_new_tokens=rounds), drafter=drafter,
                budget=budget() if budget else None,
            )  # fmt: skip
            start = time.process_time() - engine.spent
            for _ in made:
                pass
            spent = time.process_time() - engine.spent - start
            least = min(least, 1e6 * spent / made.statistics.num_rounds)
            tokens = made.statistics.mean_accepted_tokens
        rows.append(Row(name, least, tokens))
    return rows


def main() -> None:
    """Print the table or one JSON document."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--rounds", type=int, default=300, help="tokens of each request")
    parser.add_argument("--megabytes", type=int, default=0, help="read by each call")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with sdk.load(options.artifact, threads=1) as model:
        rows = measure(Instant(model.session, options.megabytes), options.rounds)
    if options.json:
        print(json.dumps([vars(row) for row in rows], indent=1))
        return
    for row in rows:
        print(f"{row.name:24} {row.microseconds:6.1f} us a round, {row.tokens:.2f} tokens")


if __name__ == "__main__":
    main()
