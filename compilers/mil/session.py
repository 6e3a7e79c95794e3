"""Stand-in for Core ML on machines that have none: the saved file in our evaluator."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor

from sdk.apple import file_names, from_file, to_file
from sdk.compilers.mil.evaluator import Graph, read_package
from sdk.compilers.mil.reach import plan
from sdk.compilers.planned import Planned
from sdk.errors import EngineError, SignatureMismatchError
from sdk.signature import Array, Signature
from sdk.target import Target

States = dict[str, Tensor]


class EvaluatorSession:
    """A session for the gates of a compile. It computes what the file says, and times nothing.

    A stateful model starts from fresh states (zeros) in each run; `make_state` gives states that
    live on, to be passed to each run that shares them. Thread-safe, one thread to a set of states.
    """

    def __init__(
        self,
        package: Path,
        signature: Signature,
        target: Target,
        ranks: Sequence[int] | None = None,
        function: str = "main",
    ) -> None:
        self.signature = signature
        self._target, self._ranks = target, ranks
        self._graph: Graph | None = read_package(package, function)
        self._check_names(self._graph)

    def run(
        self,
        feed: Mapping[str, Array],
        outputs: Mapping[str, Array] | None = None,
        *,
        state: States | None = None,
    ) -> dict[str, Array]:
        """Run once; fresh arrays, or the given ones, filled. `state` is updated in place."""
        graph = self._open()
        arrays = to_file(feed, self.signature.inputs)
        tensors = {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}
        values = graph.evaluate(tensors, graph.new_states() if state is None else state)
        results = from_file([v.numpy() for v in values], self.signature.outputs, self._ranks)
        for name, buffer in (outputs or {}).items():
            np.copyto(buffer, results[name])
        return {**results, **(outputs or {})}

    def make_state(self) -> States:
        """States as they begin: zeros."""
        return self._open().new_states()

    def placement(self) -> list[Planned]:
        """One row for each operator of the file; `reach` says what the rows are worth."""
        return plan(self._open(), self._target.device)

    def profile(self, *_: Any, **__: Any) -> NoReturn:
        """Raises EngineError: the evaluator's times are not Core ML's."""
        raise EngineError("Core ML cannot be timed on this machine.", fix="profile on a Mac")

    def close(self) -> None:
        """Release the weights. A closed session raises EngineError when run."""
        self._graph = None

    def _open(self) -> Graph:
        if self._graph is None:
            raise EngineError("The session is closed.", fix="open it again")
        return self._graph

    def _check_names(self, graph: Graph) -> None:
        read = file_names(self.signature.inputs)
        made = file_names(self.signature.outputs, read)
        if list(graph.inputs) != read or list(graph.block.outputs) != made:
            raise SignatureMismatchError(
                "The Core ML file's inputs and outputs are not those of the signature.",
                expected=f"{read} and {made}",
                got=f"{list(graph.inputs)} and {list(graph.block.outputs)}",
                fix="compile the artifact again",
            )
