"""PG-TD (arXiv:2303.05510): a tree search over tokens, for outputs that a reward function likes.

A node is a beginning of the output; its actions are the `width` most probable next tokens. Each
rollout walks down by P-UCB, makes one new node, lets the model finish the output greedily from
there, and hands the reward of the whole output up. Completions are ordinary generations, so any
drafter makes them faster and changes nothing. Two caches, the paper's: a beginning of an output
that was made before has that output as its completion, and the best tokens at every place of a
completion are kept, so that a new node there costs the model nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from sdk.errors import InputError
from sdk.runtimes.generation.cached import Cached
from sdk.runtimes.generation.config import GenerationConfig
from sdk.runtimes.generation.contracts import ROOT, Outcome
from sdk.runtimes.generation.loop import Generation
from sdk.runtimes.generation.rows import NodeRows
from sdk.runtimes.generation.siblings import top_tokens

Output = tuple[int, ...]
Reward = Callable[[Output], float]
Actions = tuple[tuple[int, float], ...]
"""Tokens and their probabilities, which sum to one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanningConfig:
    """The paper's constants but for the number of rollouts, which is a matter of time."""

    width: int = 3
    rollouts: int = 64
    exploration: float = 4.0
    base: float = 10.0
    """c and c_base of P-UCB's beta(s) = ln((N(s) + base + 1) / base) + c."""
    enough: float = 1.0
    """The search ends at this reward."""
    cache: bool = True
    """Whether what the model said once is looked up; it changes no output."""

    def __post_init__(self) -> None:
        if self.width < 1 or self.rollouts < 1 or self.base <= 0:
            raise InputError(
                "The search is out of range.",
                expected="width and rollouts of 1 or more, base above 0",
                got=self,
            )


@dataclass(frozen=True, slots=True)
class Plan:
    """Complete outputs by falling reward, and what they cost."""

    outputs: tuple[tuple[Output, float], ...]
    rollouts: int
    completions: int
    """Outputs that the model made; the others were looked up."""
    forward_passes: int
    """Of the model, without those that read the prompt."""
    best: tuple[float, ...]
    """The best reward after each rollout."""


@dataclass(slots=True)
class Node:
    """A beginning of the output; `visits` is N(s) and starts at 1."""

    output: Output
    actions: Actions
    visits: int = 1
    children: dict[int, Node] = field(default_factory=dict)
    tried: dict[int, int] = field(default_factory=dict)
    value: dict[int, float] = field(default_factory=dict)
    """Q(s, a): the best reward seen below."""

    def choose(self, settings: PlanningConfig) -> int:
        """argmax of Q + beta prior sqrt(ln N) / (1 + n); the most probable of equals."""
        beta = math.log((self.visits + settings.base + 1) / settings.base) + settings.exploration
        spread = math.sqrt(math.log(self.visits))

        def score(action: tuple[int, float]) -> float:
            token, prior = action
            bonus = beta * prior * spread / (1 + self.tried.get(token, 0))
            return self.value.get(token, 0.0) + bonus

        return max(self.actions, key=score)[0]


class Planner:
    """One search. `parts` are those of `Generation`: a drafter, a constraint, a budget."""

    def __init__(
        self,
        cached: Cached,
        prompt: Sequence[int],
        config: GenerationConfig,
        reward: Reward,
        settings: PlanningConfig | None = None,
        **parts: Any,
    ) -> None:
        if not config.greedy:
            raise InputError(
                "A plan completes outputs greedily.",
                expected="temperature 0",
                got=f"temperature {config.temperature}",
            )
        self._cached, self._prompt, self._config = cached, list(prompt), config
        self._reward, self._settings = reward, settings or PlanningConfig()
        self._parts = parts
        self._ends = {*config.eos, *config.stop_tokens}
        self._actions: dict[Output, Actions] = {}
        self._finished: dict[Output, Output] = {}
        self._rewards: dict[Output, float] = {}
        self._completions = self._passes = 0

    def run(self) -> Plan:
        """Search until there is enough, or the rollouts are used up."""
        best: list[float] = []
        root = Node((), self._below(()))
        for _ in range(self._settings.rollouts):
            best.append(max([self._rollout(root), *best[-1:]]))
            if best[-1] >= self._settings.enough:
                break
        ranked = sorted(self._rewards.items(), key=lambda pair: -pair[1])
        return Plan(tuple(ranked), len(best), self._completions, self._passes, tuple(best))

    def _rollout(self, root: Node) -> float:
        path: list[tuple[Node, int]] = []
        node = root
        while node.actions:
            token = node.choose(self._settings)
            path.append((node, token))
            if token not in node.children:
                output = (*node.output, token)
                node.children[token] = Node(output, self._below(output))
                node = node.children[token]
                break
            node = node.children[token]
        reward = self._judged(self._completed(node.output))
        for above, token in path:
            above.visits += 1
            above.tried[token] = above.tried.get(token, 0) + 1
            above.value[token] = max(reward, above.value.get(token, 0.0))
        return reward

    def _judged(self, output: Output) -> float:
        if output not in self._rewards:
            self._rewards[output] = float(self._reward(output))
        return self._rewards[output]

    def _below(self, output: Output) -> Actions:
        """The actions of a node; none where the output is whole."""
        if self._whole(output):
            return ()
        if output not in self._actions:
            self._complete(output)
        return self._actions[output]

    def _completed(self, output: Output) -> Output:
        if self._whole(output):
            return output
        if not self._settings.cache or output not in self._finished:
            self._complete(output)
        return self._finished[output]

    def _whole(self, output: Output) -> bool:
        room = self._cached.session.capacity + 1 - len(self._prompt)
        longest = min(self._config.max_new_tokens, room)
        return len(output) >= longest or (bool(output) and output[-1] in self._ends)

    def _complete(self, output: Output) -> None:
        """Let the model finish `output`, and keep what it said at each place."""
        made = Watched(
            self._cached, self._prompt, self._config, begun=output, **self._parts
        ).watched_by(self._settings.width)
        for _ in made:
            pass
        self._completions += 1
        self._passes += made.statistics.target_forward_passes
        whole = tuple(made.tokens)
        for length in range(len(output), len(whole)):
            self._finished[whole[:length]] = whole
        if not self._settings.cache:
            self._actions.pop(output, None)
        kept = made.actions if self._settings.cache else {output: made.actions[output]}
        self._actions |= kept


class Watched(Generation):
    """A generation that notes the most probable tokens at each place of its output."""

    def watched_by(self, width: int) -> Watched:
        """Itself; `actions` are filled while it runs."""
        self.actions: dict[Output, Actions] = {}
        self._width = width
        return self

    def _learn(self, outcome: Outcome) -> None:
        output, rows = tuple(self.tokens), outcome.target
        before = len(output) - len(outcome.committed)
        assert isinstance(rows, NodeRows), "the loop's own"
        nodes = (ROOT, *outcome.verdict.path)
        for index, node in enumerate(nodes[: len(outcome.committed)]):
            row = rows.likely(node)
            tokens = top_tokens(row, self._width)
            mass = row[tokens].sum()
            self.actions[output[: before + index]] = tuple(
                (token, float(row[token] / mass)) for token in tokens
            )
        super()._learn(outcome)
