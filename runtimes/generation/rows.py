"""The target's rows at the nodes of one draft: worked out when a verifier comes to the node."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from sdk.runtimes.generation.contracts import ROOT, DraftTree, LogitRows, Row
from sdk.runtimes.generation.transforms import State, Transforms, check_finite


class NodeRows:
    """`TargetRows` of one forward pass over a root and its tree. Each node has its own state.

    Behind a token of `ends` there is nothing to say, and behind a node that was not fed nothing is
    known: such a row is a single 1 on an arbitrary token, which nobody is shown.
    """

    __slots__ = ("_best", "_ends", "_fed", "_logits", "_rows", "_states", "_transforms", "_tree")

    def __init__(
        self,
        tree: DraftTree,
        logits: LogitRows,
        transforms: Transforms,
        state: State,
        ends: Collection[int] = (),
        *,
        fed: int | None = None,
    ) -> None:
        self._fed = len(tree) if fed is None else fed
        self._tree, self._logits, self._transforms, self._ends = tree, logits, transforms, ends
        self._states: dict[int, State | None] = {ROOT: state}
        self._rows: dict[int, Row] = {}
        self._best: list[int] | None = None

    def state(self, node: int) -> State | None:
        """The state after `node`, from its parent's; None behind the end."""
        if node in self._states:
            return self._states[node]
        before, token = self.state(self._tree.parents[node]), self._tree.tokens[node]
        after = None
        if before is not None and token not in self._ends:
            after = self._transforms.advance(before, token)
        self._states[node] = after
        return after

    def row(self, node: int) -> Row:
        """p after `node`."""
        if node not in self._rows:
            state = self.state(node) if node < self._fed else None
            self._rows[node] = (
                np.eye(1, len(self._logits[0]))[0]
                if state is None
                else self._transforms.apply(state, self._logits[node + 1])
            )
        return self._rows[node]

    def best(self, node: int) -> int:
        """The most probable token after `node`."""
        state = self.state(node) if node < self._fed else None
        if state is None:
            return 0
        if self._best is None:
            self._best = self._transforms.best_of_all(self._logits) or []
        if self._best:
            token = self._best[node + 1]
            check_finite(self._logits[node + 1].item(token))
            return token
        return self._transforms.best(state, self._logits[node + 1])

    def likely(self, node: int) -> Row:
        """The distribution after `node` before temperature and truncation."""
        state = self.state(node)
        assert state is not None, "nothing comes behind the end"
        return self._transforms.likely(state, self._logits[node + 1])

    def logprob(self, node: int, token: int) -> float:
        """Log-probability of `token` after `node` under the model, before any transform."""
        logits = self._logits[node + 1].astype(np.float64)
        peak = logits.max()
        return float(logits[token] - peak - np.log(np.exp(logits - peak).sum()))
