"""Exact laws of random programs: every way their chances can fall, with its probability."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable

import numpy as np

from sdk.runtimes.generation.contracts import Row


class Replay:
    """A `Chance` that follows `script` as far as it goes, and then takes the first option."""

    def __init__(self, script: tuple[int, ...]) -> None:
        self.script, self.weight = script, 1.0
        self.taken: list[int] = []
        self.others: list[tuple[int, ...]] = []

    def accept(self, probability: float, position: int, lane: int) -> bool:
        """Both ways, where both are possible."""
        probability = min(1.0, max(0.0, probability))
        options = [(1, probability), (0, 1 - probability)]
        return bool(self._decide([option for option in options if option[1] > 0]))

    def draw(self, row: Row, position: int, lane: int = 0) -> int:
        """Each token of positive weight."""
        assert row.min() >= 0
        total = row.sum()
        return self._decide([(int(i), float(row[i] / total)) for i in np.flatnonzero(row)])

    def _decide(self, options: list[tuple[int, float]]) -> int:
        at = len(self.taken)
        choice = self.script[at] if at < len(self.script) else 0
        if at >= len(self.script):
            self.others += [(*self.taken, other) for other in range(1, len(options))]
        self.taken.append(choice)
        value, weight = options[choice]
        self.weight *= weight
        return value


def law(program: Callable[[Replay], Hashable]) -> dict[Hashable, float]:
    """Pr(outcome) for each outcome of `program`; the probabilities sum to one."""
    found: dict[Hashable, float] = defaultdict(float)
    scripts: list[tuple[int, ...]] = [()]
    while scripts:
        chance = Replay(scripts.pop())
        found[program(chance)] += chance.weight
        scripts += chance.others
    return dict(found)
