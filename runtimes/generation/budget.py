"""How much to draft: from what a round costs and what it brings."""

from __future__ import annotations

import bisect
import math
import time
from collections.abc import Callable, Mapping, Sequence

from sdk.errors import InputError
from sdk.runtimes.generation.contracts import DecoderSession, DraftTree, Outcome
from sdk.runtimes.generation.resting import Rests
from sdk.runtimes.generation.trimming import MARGIN, Trimmer
from sdk.runtimes.generation.worth import Worth

Cost = Callable[[int], float]
"""r(k): time of a forward pass over k tokens, in passes over one."""


def _constant(width: int) -> float:  # noqa: ARG001  a cost that does not depend on it
    return 1.0


class Fixed:
    """Always the same."""

    predicted_speedup: float | None = None

    def __init__(self, num_draft_tokens: int = 4) -> None:
        self.num_draft_tokens = num_draft_tokens

    def begin(self) -> None:
        """Nothing changes."""

    def next(self) -> int:
        """The same as ever."""
        return self.num_draft_tokens

    def trim(self, tree: DraftTree) -> DraftTree:
        """All of it."""
        return tree

    def observe(self, outcome: Outcome) -> None:
        """Nothing to learn."""


class Heuristic:
    """Two more after a draft taken whole, one less after any other: Hugging Face's rule."""

    predicted_speedup: float | None = None

    def __init__(self, start: int = 5, *, most: int = 16) -> None:
        self._count, self._most = start, most

    def begin(self) -> None:
        """Goes on from the last request."""

    def next(self) -> int:
        """At least 1."""
        return self._count

    def trim(self, tree: DraftTree) -> DraftTree:
        """All of it."""
        return tree

    def observe(self, outcome: Outcome) -> None:
        """Rounds without a draft say nothing."""
        if outcome.tree:
            step = 2 if outcome.verdict.bonus else -1
            self._count = min(self._most, max(1, self._count + step))


def expected_tokens(alpha: float, length: int) -> float:
    """Tokens of a round with a chain of `length`, each accepted with alpha: (1-a^(g+1)) / (1-a)."""
    return length + 1.0 if alpha == 1 else (1 - alpha ** (length + 1)) / (1 - alpha)


def expected_speedup(alpha: float, length: int, draft_cost: float, cost: Cost = _constant) -> float:
    """Over plain decoding; a drafted token takes `draft_cost` of a plain step."""
    return expected_tokens(alpha, length) / (cost(length + 1) + length * draft_cost)


def best_length(alpha: float, draft_cost: float, *, cost: Cost = _constant, most: int = 64) -> int:
    """The chain's length of the best expected speed-up; 0 where plain decoding is fastest."""
    return max(
        range(most + 1), key=lambda length: expected_speedup(alpha, length, draft_cost, cost)
    )


class CostTable:
    """r(k) from a few measured widths, straight lines between them and on behind the last."""

    def __init__(self, relative: Mapping[int, float]) -> None:
        if relative.get(1) != 1.0 or min(relative.values()) <= 0 or min(relative) < 1:
            raise InputError(
                "These are not costs relative to a pass over one token.",
                expected="positive times by width, and 1.0 for width 1",
                got=dict(relative),
            )
        self._widths = sorted(relative)
        self._costs = [relative[width] for width in self._widths]
        *_, before, last = [(1, 1.0), *zip(self._widths, self._costs, strict=True)]
        self._slope = max(0.0, last[1] - before[1]) / max(1, last[0] - before[0])

    def __call__(self, width: int) -> float:
        """r(width)."""
        if width >= self._widths[-1]:
            return self._costs[-1] + (width - self._widths[-1]) * self._slope
        place = bisect.bisect_right(self._widths, width)
        (left, right), (low, high) = (
            row[place - 1 : place + 1] for row in (self._widths, self._costs)
        )
        return low + (high - low) * (width - left) / (right - left)

    @classmethod
    def measure(
        cls, session: DecoderSession, *, widths: Sequence[int] = (1, 2, 3, 5, 9, 17), runs: int = 7
    ) -> CostTable:
        """By the clock, in turn, on a session with a few committed tokens; it stays as it is.

        Where an engine prepares anew for each change of a shape, passes are timed behind others of
        their width, as the session arranges it in use.
        """
        room = min(session.capacity - session.length, getattr(session, "widest", session.capacity))
        settle = getattr(session, "settle", lambda _width: None)
        fitting = [width for width in widths if width <= room]
        wall: dict[int, float] = dict.fromkeys(fitting, math.inf)
        spent = dict(wall)
        for _ in range(runs):
            for width in fitting:
                settle(width)
                start = time.perf_counter(), time.process_time()
                session.forward([0] * width)
                wall[width] = min(wall[width], time.perf_counter() - start[0])
                spent[width] = min(spent[width], time.process_time() - start[1])
        session.rollback(session.length)
        # The least: other work on the machine only ever adds. To a wide pass it adds each time, if
        # that takes longer than a turn on a core; where the CPU computes, its own time tells.
        clocks = [wall, spent] if spent[1] > COMPUTING * wall[1] else [wall]
        return cls({width: min(c[width] / c[1] for c in clocks) for width in fitting})


COMPUTING = 0.8
"""Share of a pass that the process computed itself from which its CPU time is that of the pass."""
FORGET = 0.97
"""Weight of the past, per draft."""
PRIOR, PRIOR_WEIGHT = 0.6, 2.0
"""What is thought of a depth that was not tried, and how many trials that is worth."""
PROBE = 2
"""Nodes of the drafts that try again after a rest."""
PROBES = 2
"""How many of them there are."""
SAMPLED = 4
"""Of so many plain rounds of a rest one is looked at: what looking costs is not made up there."""
LOSS = 1.0
"""Observed speedup under which drafting is not worth it."""
MOST_STRAIN = 16.0
"""The most by which wide passes are held to take longer than was measured at first."""
RELAX = 0.01
"""What a plain pass takes off that, so that wide ones are tried again."""
CHEAP = 0.3
"""Share of a plain step under which making drafts does not decide on their size."""


class Adaptive:
    """The size with the best predicted speed-up, or none at all for a while.

    It learns how likely a draft is accepted to each depth, and what drafting costs. Where no size
    pays, it rests for `cooldown` rounds, tries small drafts at the end, and rests twice as long if
    that does not pay either (`Rests`): text that cannot be guessed costs next to nothing. A drafter
    whose tries are expensive rests longer, most of all one that reads the whole prompt for them, as
    a model does (up to 8 times `longest_cooldown`, which else is the most): a request has to be
    long enough for that, as others were. And where rounds with drafts turn out to be slower than
    plain ones, whatever was predicted, it rests too (`Worth`).

    Of a draft whose nodes have scores, the target reads those that pay (`Trimmer`). Where making
    such drafts costs little, their size follows what was read of them.
    """

    def __init__(
        self, cost: Cost, *, most: int = 8, cooldown: int = 12, longest_cooldown: int = 512
    ) -> None:
        self._cost, self._most = cost, most
        self._rests = Rests(cooldown, longest_cooldown)
        self._tried, self._taken = [0.0] * most, [0.0] * most
        self._step_ms = self._plain_ms = self._node_ms = self._draft_ms = 0.0
        self._nodes_per_level = 1.0
        self._costs = [cost(width) for width in range(1, 2 * most + 2)]
        self._relative = self._costs[1:]
        self._narrow_ms = self._wide_ms = 0.0
        self._trimmer, self._worth = Trimmer(self._costs), Worth()
        self._doubted = False
        self._cheap, self._first = False, True
        self._opening_ms = self._usual_rounds = 0.0
        self._rounds = 0
        self.predicted_speedup: float | None = None

    def begin(self) -> None:
        """The first draft of a request reads the prompt: what it takes is not what drafts cost."""
        if self._rounds:
            self._usual_rounds = _mean(self._usual_rounds, self._rounds)
        self._rounds, self._first = 0, True
        self._worth.begin()

    def next(self) -> int:
        """0 while it rests."""
        if self._rests.left:
            self._rests.left -= 1
            return PROBE if self._rests.left < PROBES else 0
        self._strain()
        worth = self._worth.speedup
        wasted = worth is not None and worth < LOSS
        if worth is not None:
            self._doubted = wasted
        if wasted:
            self._worth.forget()
        if self._cheap:
            if not wasted and self._trimmer.pays(self._draft_ms / self._step_ms):
                return self._trimmer.asked
            self._rests.nap()
            return 0
        return self._stop() if wasted else self._sized()

    def _sized(self) -> int:
        """By what is predicted; a model that reads prompts has plain rounds before it to beat."""
        if self._opening_ms > self._step_ms and not self._worth.knows_plain:
            return 0
        size, self.predicted_speedup = self._best()
        if self.predicted_speedup <= MARGIN + self._opening():
            return self._stop()
        if not self._doubted:
            self._rests.over()
        return size

    def _stop(self) -> int:
        """Rest: no draft."""
        self._rests.start(self._step_ms)
        return 0

    def _opening(self) -> float:
        """What a first draft takes beside others, in plain steps a round of a usual request."""
        if not (self._first and self._step_ms and self._usual_rounds):
            return 0.0
        return self._opening_ms / self._step_ms / self._usual_rounds

    def trim(self, tree: DraftTree) -> DraftTree:
        """The nodes that bring more than they cost; of a tree that was drawn by chance, all."""
        kept = self._trimmer.trim(tree)
        if self._trimmer.proposed:
            self.predicted_speedup = self._trimmer.speedup
        return kept

    def observe(self, outcome: Outcome) -> None:
        """Depths and times of a round; of those of a rest, of some."""
        self._rounds += 1
        drafted = bool(outcome.tree or self._trimmer.proposed)
        if self._rests.left % SAMPLED and not drafted:
            return
        tree, accepted, failed = outcome.tree, len(outcome.verdict.path), not outcome.verdict.bonus
        self._worth.observe(outcome, drafted=drafted)
        self._time(outcome.verify_ms, len(tree) + 1)
        if self._trimmer.proposed:
            tree = self._trimmer.proposed
            accepted = self._trimmer.learn(outcome.committed)
            failed = accepted < len(outcome.committed)
        if not tree:
            self._plain_ms = _running(self._plain_ms, outcome.other_ms)
            return
        self._learn_costs(outcome, tree)
        depth = max(tree.depths())
        self._nodes_per_level = _mean(self._nodes_per_level, len(tree) / depth)
        for level in range(self._most):
            self._tried[level] = FORGET * self._tried[level] + (level < accepted + failed)
            self._taken[level] = FORGET * self._taken[level] + (level < accepted)

    def _learn_costs(self, outcome: Outcome, tree: DraftTree) -> None:
        """What making drafts takes, and the first of a request beside others."""
        opening = 0.0
        if self._first:
            opening = max(0.0, outcome.draft_ms - self._node_ms * len(tree))
            self._opening_ms = _running(self._opening_ms, opening)
        else:
            spent = outcome.draft_ms + max(0.0, outcome.other_ms - self._plain_ms)
            self._node_ms = _running(self._node_ms, spent / len(tree))
            self._draft_ms = _running(self._draft_ms, spent)
            self._cheap = bool(tree.scores) and self._draft_ms < CHEAP * self._step_ms
        self._first = False
        self._rests.count(outcome, opening, self._step_ms + self._plain_ms)

    def _time(self, verify_ms: float, width: int) -> None:
        """Learn from a pass what plain ones take, and by what factor wide ones take longer than
        `cost` says: with a longer past, or at a size that the engine has not had before.
        """
        relative = verify_ms / self._cost(width)
        if width == 1:
            self._narrow_ms = _running(self._narrow_ms, relative)
            self._wide_ms += RELAX * (self._narrow_ms - self._wide_ms) if self._wide_ms else 0.0
        else:
            self._wide_ms = _running(self._wide_ms, relative)
        self._step_ms = self._narrow_ms or self._wide_ms

    def _strain(self) -> None:
        """Hold what was learned of wide passes against their costs."""
        if self._narrow_ms and self._wide_ms:
            strain = min(max(self._wide_ms / self._narrow_ms, 1.0), MOST_STRAIN)
            self._costs[1:] = [strain * cost for cost in self._relative]

    def _best(self) -> tuple[int, float]:
        """Size and its predicted speed-up."""
        draft_cost = self._node_ms / self._step_ms if self._step_ms else 0.0
        tokens = self._tokens()
        best, most = 1, 0.0
        for size in range(1, self._most + 1):
            depth = size / self._nodes_per_level
            level = min(int(depth), self._most - 1)
            brought = tokens[level] + (depth - level) * (tokens[level + 1] - tokens[level])
            speedup = brought / (self._costs[size] + size * draft_cost)
            if speedup > most:
                best, most = size, speedup
        return best, most

    def _tokens(self) -> list[float]:
        """[most + 1]: what a chain of each length brings, the token behind it included."""
        weight = PRIOR_WEIGHT
        pooled = (sum(self._taken) + weight * PRIOR) / (sum(self._tried) + weight)
        tokens, alive = [1.0], 1.0
        for taken, tried in zip(self._taken, self._tried, strict=True):
            alive *= (taken + weight * pooled) / (tried + weight)
            tokens.append(tokens[-1] + alive)
        return tokens


def _running(before: float, now: float) -> float:
    """A running mean of times. None counts more than threefold: a process that had to wait for a
    core is late by many steps, which says nothing of the next one.
    """
    return _mean(before, min(now, 3 * before) if before else now)


def _mean(before: float, now: float) -> float:
    """A running mean that starts with its first value."""
    return 0.9 * before + 0.1 * now if before else now
