"""A language model's attention by the kernel `edge::tree_attention`, rotary positions and all.

Models turn queries and keys by a function of their own, `apply_rotary_pos_emb`. While a pass runs
it hands them through as they are and remembers the angles, which the kernel then gets: so nothing
is turned in the graph. That is done only for a model whose function computes what the kernel does,
seen by its numbers, and whose queries and keys come to the attention with nothing done to them in
between.

The kernel takes a past of which all tokens see the same first rows, and reads how many from the
first row of `past_mask`.
"""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sdk.compilers.causal_lm import Layer, Pass, Step
from sdk.compilers.segments import Segment
from sdk.errors import InputError
from sdk.kernels.registry import spec_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ENGINE, KERNEL = "engine", "kernel"
ROTARY = "apply_rotary_pos_emb"
Rotary = Callable[..., tuple[Tensor, Tensor]]


@dataclass
class Turn:
    """Queries and keys [1, heads, W, D] that still have to be turned, by angles [1, W, D]."""

    query: Tensor
    key: Tensor
    cos: Tensor
    sin: Tensor


@dataclass
class KernelPass(Pass):
    """Attention over a past is one node of the domain `edge`; without a past it is as it was."""

    turn: Turn | None = None
    """Of the layer that is at work."""
    whole: bool = True
    """Whether all that was to be turned has come to the attention as it was."""
    _values: list[Tensor] = field(default_factory=list)
    _length: Tensor | None = None

    def update(
        self, keys: Tensor, values: Tensor, layer_idx: int, *more: Any, **named: Any
    ) -> tuple[Tensor, Tensor]:
        """As before; the kernel wants keys as the projection made them."""
        self.whole &= self.turn is None or keys is self.turn.key
        self._values.append(values)
        return super().update(keys, values, layer_idx, *more, **named)

    def attend(
        self, query: Tensor, scaling: float, window: int | None, cap: float | None
    ) -> Tensor:
        """As before, with the rows of keys and values that come from the kernel."""
        turn, self.turn = self.turn, None
        self.whole &= turn is None or query is turn.query
        if not self.past:
            return super().attend(query, scaling, window, cap)
        index = len(self.made) - 1
        keys, values = self.made[index]
        self.layers.append(Layer(keys.shape[0], keys.shape[-1], values.shape[-1], window))
        key = keys[None] if turn is None else turn.key
        output, key_rows, value_rows, _, _ = spec_of("tree_attention")(
            _tokens_first(query),
            _tokens_first(key),
            _tokens_first(self._values[index]),
            *self.past[index],
            self._rows_in_use(),
            self.positions.squeeze(0),
            self.new_mask,
            None if turn is None else turn.cos.squeeze(0),
            None if turn is None else turn.sin.squeeze(0),
            scale=float(scaling),
            softcap=float(cap or 0),
            window=int(window or 0),
        )
        self.made[index] = key_rows, value_rows
        mixed: Tensor = output[None]
        return mixed

    def _rows_in_use(self) -> Tensor:
        if self._length is None:
            self._length = self.past_mask[0].sum(dim=0, keepdim=True)
        return self._length


def _tokens_first(rows: Tensor) -> Tensor:
    """[1, heads, W, D] as [W, heads, D], by undoing what models did to their projections."""
    return rows.transpose(1, 2).squeeze(0)


class KernelAttention(Step):
    """A step that attends by the kernel; put it before another kind of step to make it one."""

    _spares = False
    """Whether turning is left to the kernel."""
    _running: KernelPass

    def _pass(
        self,
        positions: Tensor,
        past_mask: Tensor,
        new_mask: Tensor,
        past: Sequence[tuple[Tensor, Tensor]],
    ) -> KernelPass:
        self._running = KernelPass(positions, past_mask, new_mask, past)
        return self._running

    def _run(self, given: Tensor, rows: Tensor, run: Pass) -> tuple[Tensor, list[Tensor]]:
        if not self._spares:
            return super()._run(given, rows, run)
        with unturned(self.model, self._running):
            return super()._run(given, rows, run)

    def _look(self) -> tuple[Layer, ...]:
        self._spares = is_plain(self.model)
        layers = super()._look()
        self._spares &= self._running.whole
        return layers


class KernelSegment(KernelAttention, Segment):
    """Some layers that attend by the kernel."""


def steps(attention: str) -> tuple[type[Step], type[Segment]]:
    """The kinds of step, of a whole model and of some layers, that attend by `attention`."""
    known = {ENGINE: (Step, Segment), KERNEL: (KernelAttention, KernelSegment)}
    if attention not in known:
        raise InputError("There is no such attention.", expected=" or ".join(known), got=attention)
    return known[attention]


@contextlib.contextmanager
def unturned(model: PreTrainedModel, run: KernelPass) -> Iterator[None]:
    """In the block the model's rotary function leaves the turning to `run`."""
    with contextlib.ExitStack() as stack:
        for place in _modules(model):
            own: Rotary = getattr(place, ROTARY)
            setattr(place, ROTARY, functools.partial(_remember, own, run))
            stack.callback(setattr, place, ROTARY, own)
        yield


def is_plain(model: PreTrainedModel) -> bool:
    """Whether the model turns by a function that computes what the kernel does."""
    places = _modules(model)
    return bool(places) and all(_turns_plainly(getattr(place, ROTARY)) for place in places)


def _modules(model: PreTrainedModel) -> list[Any]:
    """The Python modules with a rotary function that the model's parts come from."""
    names = {type(part).__module__ for part in model.modules()}
    return [sys.modules[name] for name in sorted(names) if hasattr(sys.modules[name], ROTARY)]


def _remember(
    own: Rotary, run: KernelPass, query: Tensor, key: Tensor, *angles: Any, **named: Any
) -> tuple[Tensor, Tensor]:
    if len(angles) != 2 or named or query.shape[-1] != angles[0].shape[-1]:
        run.whole = False
        return own(query, key, *angles, **named)
    run.turn = Turn(query, key, *angles)
    return query, key


def _turns_plainly(own: Rotary) -> bool:
    """By numbers: x * cos + (-x2, x1) * sin, of the halves x1 and x2 of x."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    query, key, angles = normal(1, 2, 3, 8), normal(1, 1, 3, 8), normal(1, 3, 4).repeat(1, 1, 2)
    cos, sin = angles.cos(), angles.sin()
    try:
        got = own(query, key, cos, sin)
    except (TypeError, ValueError, RuntimeError, IndexError):
        return False
    wanted = (
        x * cos[:, None] + torch.cat([-x[..., 4:], x[..., :4]], -1) * sin[:, None]
        for x in (query, key)
    )
    return all(
        g.shape == w.shape and torch.allclose(g, w) for g, w in zip(got, wanted, strict=True)
    )
