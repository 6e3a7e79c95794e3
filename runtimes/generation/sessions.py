"""A compiled `step` with its cache as a `DecoderSession`, on any engine.

The function reads past keys and values as they lie in the cache and returns the new rows alone;
committing copies the accepted ones in. Inputs and outputs of a width are bound to an engine once.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sdk.errors import GenerationError
from sdk.runtimes.binding import bind
from sdk.runtimes.generation import tree_shapes
from sdk.runtimes.generation.contracts import ROOT, Step
from sdk.runtimes.generation.kept_features import Features, KeptFeatures
from sdk.runtimes.generation.past import Past, bucket
from sdk.runtimes.session import Session
from sdk.signature import Array, Dim, Signature, TensorSpec

FROM = "from_features"
CHUNK = 128
"""Tokens of a prompt that are read at once."""
PADDED = 16
"""A chunk of more tokens than half of it is filled up to a multiple: few shapes to prepare for."""
PATIENCE = 8
"""Plain passes that are filled up before they get a width of their own again."""
KEPT = 32
"""Widths whose bindings are kept."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """What the signature of a decoder says; ask `is_decoder` before."""

    layers: int
    heads: int
    key_width: int
    value_width: int
    capacity: int
    vocabulary: int
    taken: int
    """Width of the features that are fed; 0 where there are none."""
    given: int
    """Width of the features that come out."""
    named: bool
    """Whether tokens are fed."""
    width: int | None = None
    """Tokens of each pass, where their number is fixed."""

    @classmethod
    def of(cls, signature: Signature) -> Sizes:
        """From the inputs `past_keys_<i>` and the output `logits`."""
        inputs = {spec.name: spec for spec in signature.inputs}
        outputs = {spec.name: spec for spec in signature.outputs}
        keys, values = inputs["past_keys_0"], inputs["past_values_0"]
        layers = sum(name.startswith("past_keys_") for name in inputs)
        rows = keys.shape[1]
        return cls(
            layers=layers,
            heads=_fixed(keys, 0),
            key_width=_fixed(keys, 2),
            value_width=_fixed(values, 2),
            capacity=rows.max if isinstance(rows, Dim) else rows,
            vocabulary=_fixed(outputs["logits"], 1),
            taken=_fixed(inputs[FROM], 2) if FROM in inputs else 0,
            given=_fixed(outputs["features"], 1) if "features" in outputs else 0,
            named="tokens" in inputs,
            width=fixed if isinstance(fixed := inputs["positions"].shape[1], int) else None,
        )


def is_decoder(signature: Signature) -> bool:
    """Whether it is a `step` that this session can drive."""
    inputs = {spec.name for spec in signature.inputs}
    outputs = {spec.name for spec in signature.outputs}
    wanted = {"positions", "rows", "past_mask", "new_mask", "past_keys_0"}
    fed = inputs & {"tokens", FROM}
    return wanted <= inputs and bool(fed) and {"logits", "keys", "values"} <= outputs


def _filled(
    tokens: Sequence[int], parents: Sequence[int] | None, width: int
) -> tuple[list[int], list[int] | None]:
    """As many tokens as a pass has: behind those at hand come some that nobody sees."""
    more = width - len(tokens)
    branched = None if parents is None else [*parents, *[ROOT] * more]
    return [*tokens, *[0] * more], branched


class Steady:
    """Widths for an engine to which a change of the width costs more than some rows: powers of two,
    that fall back to 1 behind a row of plain passes.
    """

    def __init__(self) -> None:
        self._width, self._plain = 1, 0

    def of(self, count: int) -> int:
        """The width of a pass over `count` tokens."""
        self._plain = 0 if count > 1 else self._plain + 1
        if self._plain > PATIENCE:
            self._width = 1
        if count > self._width:
            self._width = 1 << (count - 1).bit_length()
        return self._width


def flat_view(array: Array) -> memoryview:
    """Its numbers in a row. Writing some of them takes a fraction of what numpy takes for it, most
    of all where an engine has left nothing of us in the caches.
    """
    return array.reshape(-1).data


def fill(view: memoryview, numbers: Iterable[int]) -> None:
    """Write `numbers` at its beginning."""
    for place, number in enumerate(numbers):
        view[place] = number


@dataclass(slots=True)
class Bound:
    """The arrays of one width and number of rows, and the engine's call that uses them."""

    call: Callable[[], object]
    positions: memoryview
    past_mask: Array
    new_mask: Array
    logits: NDArray[np.float32]
    keys: NDArray[np.float32]
    values: NDArray[np.float32]
    tokens: memoryview | None
    fed: Array | None
    """Features that go in, [1, W, F]."""
    features: NDArray[np.float32] | None
    """Features that come out, [W, F]."""
    seen: int = 0
    """Rows that the past mask shows."""
    chain: bool = True
    """Whether the new mask is that of a chain."""


class StepSession:
    """Keys and values live here, an engine session does the arithmetic. Not thread-safe.

    A step may give hidden states too, its features: those of committed tokens are kept. One that
    goes on from another's features is fed them, beside the tokens or in their place.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._sizes = sizes = Sizes.of(session.signature)
        self.capacity, self.vocabulary = sizes.capacity, sizes.vocabulary
        self.feature_width, self.given_width = sizes.taken, sizes.given
        self.widest = sizes.width or sizes.capacity
        self.length = 0
        shapes = ((sizes.layers, sizes.heads, d) for d in (sizes.key_width, sizes.value_width))
        self._keys, self._values = (Past(*shape, sizes.capacity) for shape in shapes)
        self._features = KeptFeatures(sizes.capacity, sizes.given)
        self._whole = sizes.width is not None or getattr(session, "skips_unused_rows", False)
        """Whether passes get all rows of the cache, whatever is in use."""
        settles = sizes.width is None and getattr(session, "prepares_for_shapes", False)
        self._steady = Steady() if settles else None
        if self._whole:
            for past in (self._keys, self._values):
                past.resize(sizes.capacity, 0)
        self._bound: OrderedDict[tuple[int, int], Bound] = OrderedDict()
        self._outputs: dict[str, NDArray[np.float32]] = {}
        self._last: Bound | None = None
        self._source: dict[str, Array] = {}

    def extend(self, tokens: Sequence[int], *, features: Features | None = None) -> None:
        """Feed known tokens in chunks and commit them; `features` [m, F] where they are taken."""
        size = min(CHUNK, self.widest)
        for start in range(0, len(tokens), size):
            chunk = list(tokens[start : start + size])
            fed = None if features is None else features[start : start + size]
            count = len(chunk)
            if count > PADDED // 2 and self._sizes.width is None:
                chunk += [0] * (min(-(-count // PADDED) * PADDED, self.capacity) - count)
            self._check_room(count)
            self._feed(chunk, None, rows=1, features=fed)
            self.commit(range(count))

    def forward(
        self,
        tokens: Sequence[int],
        parents: Sequence[int] | None = None,
        *,
        features: Features | None = None,
    ) -> Step:
        """Logits after each token; the arrays are overwritten by the next call."""
        count = len(tokens)
        self._check_room(count)
        if self._steady is not None:
            tokens, parents = _filled(tokens, parents, min(self._steady.of(count), self.capacity))
        bound = self._feed(tokens, parents, rows=len(tokens), features=features)
        return Step(bound.logits[:count], bound.features)

    def settle(self, width: int) -> None:
        """Get an engine that prepares for each change of a shape ready for passes of this width."""
        if self._steady is not None:
            self._steady = Steady()
            self.forward([0] * width)

    def features(self, start: int, stop: int) -> Features:
        """[stop - start, F] of committed tokens; a view of what the next commit may overwrite."""
        return self._features.of(start, stop, length=self.length)

    def read(self, source: Mapping[str, Array]) -> None:
        """What tokens attend to beside each other, from now on; for a step that takes a source."""
        self.rollback(0)
        self._source = dict(source)
        self._bound.clear()

    def commit(self, path: Sequence[int]) -> None:
        """Copy the rows of these tokens into the cache."""
        bound, count, start = self._last, len(path), self.length
        if bound is None:
            raise GenerationError("There is no forward pass whose tokens could be committed.")
        chosen: slice | list[int] = list(path)
        if all(node == place for place, node in enumerate(path)):
            chosen = slice(count)
        self._last = None
        self._fit(start + count)
        self._keys.array[:, :, start : start + count] = bound.keys[:, :, chosen]
        self._values.array[:, :, start : start + count] = bound.values[:, :, chosen]
        self._features.keep(start, bound.features, path)
        self.length += count

    def rollback(self, length: int) -> None:
        """Forget what lies behind `length` tokens."""
        if not 0 <= length <= self.length:
            raise GenerationError(
                "The cache cannot be rolled back to there.",
                expected=f"0 to {self.length} tokens",
                got=length,
            )
        self._last = None
        for past in (self._keys, self._values):
            past.clear(length, self.length)
        self.length = length

    def fork(self) -> StepSession:
        """On the same engine session; keys and values are copied."""
        twin = StepSession(self._session)
        twin._keys, twin._values = (p.copy(self.length) for p in (self._keys, self._values))
        twin._features.copy(self._features, self.length)
        twin._source = self._source
        twin.length = self.length
        return twin

    def _check_room(self, count: int) -> None:
        room = self.capacity - self.length
        if not 0 < count <= min(room, self.widest):
            raise GenerationError(
                "The context has no room for these tokens.",
                expected=f"1 to {min(room, self.widest)} tokens",
                got=count,
            )

    def _feed(
        self,
        tokens: Sequence[int],
        parents: Sequence[int] | None,
        *,
        rows: int,
        features: Features | None = None,
    ) -> Bound:
        if self._sizes.width is not None:
            tokens, parents = _filled(tokens, parents, self._sizes.width)
            rows = self._sizes.width
        width = len(tokens)
        if not self._whole and self._keys.size >= 2 * bucket(self.length, self.capacity):
            self._fit(self.length, shrink=True)
        bound = self._bound.get((width, rows)) or self._bind(width, rows)
        if bound.tokens is not None:
            fill(bound.tokens, tokens)
        if bound.fed is not None and features is not None:
            bound.fed[0, : len(features)] = features
        self._show(bound)
        if parents is None:
            start, last = self.length, self.capacity - 1  # behind it is only what fills a chunk up
            fill(bound.positions, [min(start + step, last) for step in range(width)])
            if not bound.chain:
                bound.new_mask[:] = np.tri(width, dtype=bool)
                bound.chain = True
        else:
            self._branch(bound, parents)
        bound.call()
        self._last = bound
        return bound

    def _show(self, bound: Bound) -> None:
        """Let the past mask show the committed rows."""
        if bound.seen < self.length:
            bound.past_mask[:, bound.seen : self.length] = True
        elif bound.seen > self.length:
            bound.past_mask[:, self.length : bound.seen] = False
        bound.seen = self.length

    def _branch(self, bound: Bound, parents: Sequence[int]) -> None:
        """Masks and positions of a tree: each token sees its ancestors and itself."""
        bound.chain = False
        shape, before = tuple(parents), self.length - 1
        bound.new_mask[:] = tree_shapes.sight(shape)
        fill(bound.positions, [before + depth for depth in tree_shapes.depths(shape)])

    def _fit(self, length: int, *, shrink: bool = False) -> None:
        """Give the cache the size for `length` rows; what was bound to another one is dropped."""
        size = self.capacity if self._whole else bucket(length, self.capacity)
        if size > self._keys.size or (shrink and size < self._keys.size):
            for past in (self._keys, self._values):
                past.resize(size, self.length)
            self._bound.clear()

    def _bind(self, width: int, rows: int) -> Bound:
        sizes = self._sizes
        lead = (sizes.layers, sizes.heads, width)
        inputs: dict[str, Array] = {
            "positions": np.zeros((1, width), np.int64),
            "rows": np.arange(rows),
            "past_mask": np.zeros((width, self._keys.size), bool),
            "new_mask": np.tri(width, dtype=bool),
        }
        if sizes.named:
            inputs["tokens"] = np.zeros((1, width), np.int64)
        if sizes.taken:
            inputs[FROM] = np.zeros((1, width, sizes.taken), np.float32)
        inputs |= self._source
        for layer in range(sizes.layers):
            inputs[f"past_keys_{layer}"] = self._keys.array[layer]
            inputs[f"past_values_{layer}"] = self._values.array[layer]
        shapes = {
            "logits": (rows, sizes.vocabulary),
            "keys": (*lead, sizes.key_width),
            "values": (*lead, sizes.value_width),
        }
        if sizes.given:
            shapes["features"] = (width, sizes.given)
        usual = width <= CHUNK
        outputs = {name: self._output(name, shapes[name], shared=usual) for name in shapes}
        call = bind(self._session, inputs, outputs)
        bound = Bound(
            call,
            positions=flat_view(inputs["positions"]),
            past_mask=inputs["past_mask"],
            new_mask=inputs["new_mask"],
            tokens=flat_view(inputs["tokens"]) if sizes.named else None,
            fed=inputs.get(FROM),
            **{"features": None, **outputs},  # type: ignore[arg-type]
        )
        if usual:
            self._bound[width, rows] = bound
        if len(self._bound) > KEPT:
            self._bound.popitem(last=False)
        return bound

    def _output(self, name: str, shape: tuple[int, ...], *, shared: bool) -> NDArray[np.float32]:
        """An array in memory that all usual widths share; it grows with the widest."""
        count = int(np.prod(shape))
        if not shared:
            return np.empty(shape, np.float32)
        if name not in self._outputs or self._outputs[name].size < count:
            self._outputs[name] = np.empty(count, np.float32)
            self._bound.clear()
        return self._outputs[name][:count].reshape(shape)


def _fixed(spec: TensorSpec, axis: int) -> int:
    size = spec.shape[axis]
    assert isinstance(size, int), f"{spec.name} has a size that varies"
    return size
