"""A causal language model of `transformers` as one function, `step`: some tokens behind a cache.

`transformers` lets a caller bring the cache and the attention along, so the models' own code stays
as it is. The cache here keeps nothing: it hands out the past that came in as inputs and collects
the new keys and values, which are outputs. Nothing is ever joined over the length of the past:
attention is two products, of past and of new keys, under one softmax.

Sizes: W tokens, R of them with logits, P rows of past of which a mask says which are there, V
entries of the vocabulary, L layers, H heads of keys, D their width.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import Module

from sdk.compilers.attending import attending, refuse
from sdk.compilers.capture import Named, class_name
from sdk.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LEAD = ("tokens", "positions", "rows", "past_mask", "new_mask")
FROM = "from_features"  # the first input of a step that goes on from another's features


@dataclass(frozen=True)
class Layer:
    """What a layer showed of itself: shape of its keys and values, and its window."""

    heads: int
    key_width: int
    value_width: int
    window: int | None


@dataclass
class Pass:
    """One forward pass: the past and masks that it reads, the keys and values that it makes."""

    positions: Tensor
    past_mask: Tensor
    new_mask: Tensor
    past: Sequence[tuple[Tensor, Tensor]]
    """Keys [H, P, D] and values of each layer; empty where there is no past at all."""
    made: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    layers: list[Layer] = field(default_factory=list)
    _biases: dict[tuple[int | None, int], Tensor] = field(default_factory=dict)

    def update(
        self, keys: Tensor, values: Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """The cache's part: keep what is new, [1, H, W, D], and give it back alone."""
        if layer_idx != len(self.made) or len(keys) != 1:
            raise NotImplementedError("layers that share or skip caches")
        self.made.append((_plain(keys.squeeze(0)), _plain(values.squeeze(0))))
        return keys, values

    def get_seq_length(self, *_: Any) -> int:
        """Nothing of transformers' own may depend on it: positions and masks are given."""
        return 0

    def get_query_offset(self, *_: Any) -> int:
        """As above."""
        return 0

    def told(
        self,
        query: Tensor,
        key: Tensor,  # noqa: ARG002  `update` had it
        value: Tensor,  # noqa: ARG002
        scaling: float,
        *,
        sliding_window: int | None = None,
        softcap: float | None = None,
        **more: Any,
    ) -> Tensor:
        """`attend`, as models tell it to; NotImplementedError for what they may tell besides."""
        refuse(more, "position_bias")
        return self.attend(query, scaling, sliding_window, softcap)

    def attend(
        self, query: Tensor, scaling: float, window: int | None, cap: float | None
    ) -> Tensor:
        """Attention of `query` [1, H * G, W, D] in the layer updated last, [1, W, H * G, D]."""
        keys, values = self.made[-1]
        self.layers.append(Layer(keys.shape[0], keys.shape[-1], values.shape[-1], window))
        heads, groups, width = query.shape[1], keys.shape[0], self.new_mask.shape[0]
        # Heads that share keys are one product, so that no key is repeated.
        grouped = _plain(query.squeeze(0)).reshape(groups, -1, query.shape[3]) * scaling
        pairs = [*self.past[len(self.made) - 1 : len(self.made)], (keys, values)]
        scores = torch.cat([grouped @ k.transpose(1, 2) for k, _ in pairs], -1)
        if cap is not None:
            scores = torch.tanh(scores / cap) * cap
        weights = torch.softmax(scores + self._bias(window, heads // groups, scores.dtype), -1)
        shares = torch.split(weights, self._sizes(), -1)
        mixed = sum((w @ v for w, (_, v) in zip(shares[1:], pairs[1:], strict=True)),
                    shares[0] @ pairs[0][1])  # fmt: skip
        return _plain(mixed.reshape(1, heads, width, values.shape[-1]).transpose(1, 2))

    def _sizes(self) -> list[int]:
        """Rows of past, if there is one, and new tokens.

        The masks are asked alone: each tensor that is costs the graph an operator.
        """
        new = self.new_mask.shape[1]
        return [self.past_mask.shape[1], new] if self.past else [new]

    def _bias(self, window: int | None, times: int, dtype: torch.dtype) -> Tensor:
        """[times * W, P + W], made once for all layers alike: 0, or so low that nothing is left."""
        key = window, times
        if key not in self._biases:
            seen = torch.cat([self.past_mask, self.new_mask], -1) if self.past else self.new_mask
            if window is not None:
                seen = seen & (self._distances() < window)
            low = torch.full((), torch.finfo(dtype).min / 2, dtype=dtype)
            bias = torch.where(seen, torch.zeros((), dtype=dtype), low)
            self._biases[key] = bias.repeat(times, 1)
        return self._biases[key]

    def _distances(self) -> Tensor:
        """How far each row of past and each new token lies before each new token."""
        new = self.positions.squeeze(0)
        if not self.past:
            return new[:, None] - new[None]
        rows = torch.arange(self.past_mask.shape[1], dtype=new.dtype)
        return new[:, None] - torch.cat([rows, new])[None]


def _plain(tensor: Tensor) -> Tensor:
    """A copy in plain layout: asking whether it is in it already would tie the capture to sizes."""
    return tensor.clone(memory_format=torch.contiguous_format)


class Step(Named):
    """`tokens` [1, W] at `positions` [1, W] -> `logits` [R, V], `keys` and `values` [L, H, W, D].

    `rows` [R] says after which tokens logits are wanted. `past_mask` [W, P] and `new_mask` [W, W]
    say what each token sees; a row of past is at the position of its index. With `features` there
    are the hidden states [W, F] that the logits are made of, too.
    """

    def __init__(
        self, model: PreTrainedModel, *, features: bool = False, first_input: str = LEAD[0]
    ) -> None:
        lead = (first_input, *LEAD[1:])
        super().__init__(lead, class_name(model))
        self.model = model
        self._tap = self._tapped() if features else None
        takes = inspect.signature(model.forward).parameters
        self._cache = next((n for n in ("cache", "past_key_values") if n in takes), None)
        missing = [n for n in ("input_ids", "position_ids", "logits_to_keep") if n not in takes]
        if self._cache is None or missing:
            raise unfit(model, f"its forward has no {' or '.join(missing) or 'cache'}")
        self.layers = self._look()
        past = (f"past_{what}_{i}" for i in range(len(self.layers)) for what in ("keys", "values"))
        self.input_names = (*lead, *past)

    def forward(self, *tensors: Tensor) -> dict[str, Tensor]:
        """The tensors in the order of `input_names`."""
        tokens, positions, rows, past_mask, new_mask, *flat = tensors
        past = list(zip(flat[::2], flat[1::2], strict=True))
        run = self._pass(positions, past_mask, new_mask, past)
        logits, features = self._run(tokens, rows, run)
        keys, values = (torch.stack(part) for part in zip(*run.made, strict=True))
        found = {"logits": logits, "keys": keys, "values": values}
        return found | ({"features": features[0].squeeze(0)} if features else {})

    def _pass(
        self,
        positions: Tensor,
        past_mask: Tensor,
        new_mask: Tensor,
        past: Sequence[tuple[Tensor, Tensor]],
    ) -> Pass:
        """What the model attends by."""
        return Pass(positions, past_mask, new_mask, past)

    def _tapped(self) -> Module:
        """The part of the model whose output the features are."""
        base: Module = self.model.base_model
        return base

    def _fed(self, given: Tensor) -> dict[str, Tensor]:
        """What the model calls the first input."""
        return {"input_ids": given}

    def _run(self, given: Tensor, rows: Tensor, run: Pass) -> tuple[Tensor, list[Tensor]]:
        assert self._cache is not None
        with attending(self.model, run.told), _output_of(self._tap) as features:
            result = self.model(
                **self._fed(given),
                position_ids=run.positions,
                logits_to_keep=rows,
                use_cache=True,
                return_dict=True,
                **{self._cache: run},
            )
        return result.logits[0], features

    def _nothing(self) -> Tensor:
        """A first input of two tokens."""
        return torch.zeros((1, 2), dtype=torch.long)

    def _look(self) -> tuple[Layer, ...]:
        """The model's layers, seen in a pass over two tokens without a past."""
        rows = torch.zeros(1, dtype=torch.long)
        mask = torch.ones(2, 2, dtype=torch.bool).tril()
        run = self._pass(torch.arange(2)[None], mask[:, :0], mask, [])
        try:
            with torch.no_grad():
                self._run(self._nothing(), rows, run)
        except (NotImplementedError, AttributeError, TypeError) as error:
            raise unfit(self.model, f"{type(error).__name__}: {error}") from error
        shapes = {(layer.heads, layer.key_width, layer.value_width) for layer in run.layers}
        if len(run.layers) != len(run.made) or len(shapes) != 1:
            raise unfit(self.model, f"{len(run.made)} caches, {len(run.layers)} attentions")
        _check_windows(self.model, run.layers)
        return tuple(run.layers)


@contextlib.contextmanager
def _output_of(module: Module | None) -> Iterator[list[Tensor]]:
    """The first output of `module` each time that it runs in the block."""
    found: list[Tensor] = []
    if module is None:
        yield found
        return

    def keep(_module: Module, _inputs: Any, output: Any) -> None:
        found.append(output if isinstance(output, Tensor) else output[0])

    handle = module.register_forward_hook(keep)
    try:
        yield found
    finally:
        handle.remove()


def _check_windows(model: PreTrainedModel, layers: Sequence[Layer]) -> None:
    """Each layer's window must be the one that the configuration gives its type."""
    config = model.config.get_text_config()
    kinds = getattr(config, "layer_types", None)
    if kinds is None:
        return
    known = {"full_attention": None, "sliding_attention": getattr(config, "sliding_window", None)}
    for index, (kind, layer) in enumerate(zip(kinds, layers, strict=True)):
        if kind not in known or layer.window != known[kind]:
            raise unfit(model, f"layer {index} is of {kind}, window {layer.window}")


def unfit(model: PreTrainedModel, reason: str) -> InputError:
    return InputError(
        f"{type(model).__name__} cannot be compiled for generation.",
        expected="a causal language model whose attention and cache transformers lets us replace",
        got=reason,
        fix="leave task out to compile its plain forward pass",
    )
