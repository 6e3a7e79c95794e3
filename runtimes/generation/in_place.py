"""A decoder whose engine writes the cache in place, as a `DecoderSession`.

Past and present of a layer are one buffer for the whole capacity. The engine puts the rows of the
tokens that it is fed behind the committed ones and looks at no row beyond them, so committing a
chain is to count it, and forgetting tokens is to count less. Only the rows of a tree move.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
from numpy.typing import NDArray

from sdk.errors import GenerationError
from sdk.runtimes.binding import bind
from sdk.runtimes.generation import tree_shapes
from sdk.runtimes.generation.contracts import FeatureSession, Step
from sdk.runtimes.generation.kept_features import Features, KeptFeatures
from sdk.runtimes.generation.sessions import CHUNK, KEPT, Sizes, StepSession, fill, flat_view
from sdk.runtimes.session import Session
from sdk.signature import Array

LOW = np.float32(np.finfo(np.float32).min / 2)
"""Added to a score it leaves nothing of its weight."""


def decoder(session: Session) -> FeatureSession:
    """The cache that fits the session's engine file."""
    return InPlaceSession(session) if getattr(session, "in_place", False) else StepSession(session)


def as_feature_session(given: Session | FeatureSession) -> FeatureSession:
    """An engine session with a cache; anything that has one already as it is."""
    return cast("FeatureSession", given) if hasattr(given, "commit") else decoder(given)


@dataclass(frozen=True, slots=True)
class Bound:
    """The arrays of one width, and the engine's call that uses them."""

    call: Callable[[], object]
    tokens: memoryview
    positions: memoryview
    last: memoryview
    bias: Array
    logits: NDArray[np.float32]
    features: Features | None


class InPlaceSession:
    """Keys and values live here, an engine session does the arithmetic. Not thread-safe."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._sizes = sizes = Sizes.of(session.signature)
        self.capacity, self.vocabulary = sizes.capacity, sizes.vocabulary
        self.feature_width, self.given_width = 0, sizes.given
        self.length = 0
        shape = (2, sizes.layers, 1, sizes.heads, sizes.capacity, sizes.key_width)
        self._rows: NDArray[np.float32] = np.zeros(shape, np.float32)
        self._bias = np.zeros(CHUNK * sizes.capacity, np.float32)
        self._logits = np.zeros((1, sizes.vocabulary), np.float32)
        self._bound: OrderedDict[tuple[int, int], Bound] = OrderedDict()
        self._features = KeptFeatures(sizes.capacity, sizes.given)
        self._fed = 0
        self._given: Features | None = None

    def extend(self, tokens: Sequence[int], *, features: None = None) -> None:  # noqa: ARG002
        """Feed known tokens in chunks and commit them; `features` are never taken."""
        for start in range(0, len(tokens), CHUNK):
            chunk = tokens[start : start + CHUNK]
            self._check_room(len(chunk))
            self._feed(chunk, None, rows=1)
            self.commit(range(len(chunk)))

    def forward(
        self,
        tokens: Sequence[int],
        parents: Sequence[int] | None = None,
        *,
        features: None = None,  # noqa: ARG002
    ) -> Step:
        """Logits after each token; the arrays are overwritten by the next call."""
        self._check_room(len(tokens))
        bound = self._feed(tokens, parents, rows=len(tokens))
        return Step(bound.logits, bound.features)

    def features(self, start: int, stop: int) -> Features:
        """[stop - start, F] of committed tokens; a view of what the next commit may overwrite."""
        return self._features.of(start, stop, length=self.length)

    def commit(self, path: Sequence[int]) -> None:
        """Count the rows of these tokens; those of a tree move together first."""
        count, start = len(path), self.length
        if not self._fed or (count and max(path) >= self._fed):
            raise GenerationError("There is no forward pass whose tokens could be committed.")
        self._fed = 0
        if any(node != place for place, node in enumerate(path)):
            moved = self._rows[..., [start + node for node in path], :]
            self._rows[..., start : start + count, :] = moved
        self._features.keep(start, self._given, path)
        self.length += count

    def rollback(self, length: int) -> None:
        """Forget what lies behind `length` tokens."""
        if not 0 <= length <= self.length:
            raise GenerationError(
                "The cache cannot be rolled back to there.",
                expected=f"0 to {self.length} tokens",
                got=length,
            )
        self._fed, self.length = 0, length

    def fork(self) -> InPlaceSession:
        """On the same engine session; the rows are copied."""
        twin = InPlaceSession(self._session)
        twin._rows[..., : self.length, :] = self._rows[..., : self.length, :]
        twin._features.copy(self._features, self.length)
        twin.length = self.length
        return twin

    def _check_room(self, count: int) -> None:
        room = self.capacity - self.length
        if not 0 < count <= room:
            raise GenerationError(
                "The context has no room for these tokens.",
                expected=f"1 to {room} tokens",
                got=count,
            )

    def _feed(self, tokens: Sequence[int], parents: Sequence[int] | None, *, rows: int) -> Bound:
        width, start = len(tokens), self.length
        bound = self._bound.get((width, rows)) or self._bind(width, rows)
        fill(bound.tokens, tokens)
        bound.last[0] = start + width - 1
        if parents is None:
            fill(bound.positions, range(start, start + width))
            bound.call()
        else:
            shape = tuple(parents)
            new = bound.bias[0, 0, :, start : start + width]
            np.multiply(~tree_shapes.sight(shape), LOW, out=new)
            fill(bound.positions, [start - 1 + depth for depth in tree_shapes.depths(shape)])
            bound.call()
            new[:] = 0  # all widths share the memory
        self._fed, self._given = width, bound.features
        return bound

    def _bind(self, width: int, rows: int) -> Bound:
        capacity, usual = self.capacity, width <= CHUNK
        if rows > len(self._logits):
            self._logits = np.zeros((rows, self.vocabulary), np.float32)
            self._bound.clear()
        flat = self._bias if usual else np.zeros(width * capacity, np.float32)
        lead: dict[str, Array] = {
            "tokens": np.zeros((1, width), np.int64),
            "positions": np.zeros((1, width), np.int64),
            "last": np.zeros(1, np.int32),
            "bias": flat[: width * capacity].reshape(1, 1, width, capacity),
        }
        inputs: dict[str, Array] = {
            **lead, "rows": np.arange(rows), "room": np.array([capacity], np.int32)
        }  # fmt: skip
        outputs: dict[str, Array] = {"logits": self._logits[:rows]}
        features = np.zeros((width, self.given_width), np.float32) if self.given_width else None
        if features is not None:
            outputs["features"] = features
        for what, layers in zip(("keys", "values"), self._rows, strict=True):
            for layer, buffer in enumerate(layers):
                inputs[f"past_{what}_{layer}"] = outputs[f"present_{what}_{layer}"] = buffer
        call = bind(self._session, inputs, outputs)
        bound = Bound(
            call,
            tokens=flat_view(lead["tokens"]),
            positions=flat_view(lead["positions"]),
            last=flat_view(lead["last"]),
            bias=lead["bias"],
            logits=self._logits[:rows],
            features=features,
        )
        if usual:
            self._bound[width, rows] = bound
        if len(self._bound) > KEPT:
            self._bound.popitem(last=False)
        return bound
