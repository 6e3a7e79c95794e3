"""An encoder-decoder of `transformers` as two functions: `encode` once, and `step` over a cache.

`encode` reads the source and gives the keys and values that the decoder's layers look up in it.
`step` is that of a causal language model (`causal_lm.py`) with these among its inputs. The models'
own code stays as it is: the cache that they are handed says that the source was read already.

Sizes as in `causal_lm.py`, and S tokens of the source.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from sdk.compilers.attending import attending, refuse
from sdk.compilers.capture import Named, class_name
from sdk.compilers.causal_lm import LEAD, Layer, Pass, unfit
from sdk.extras import require

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Pairs = Sequence[tuple[Tensor, Tensor]]
# Attributes of modules that number positions by themselves, in the decoders of the library.
POSITIONS, RELATIVE = "embed_positions", "relative_attention_bias"


@dataclass
class SourcePass(Pass):
    """One forward pass of a decoder that also attends to a source."""

    source: Pairs = ()
    """Keys and values [1, H, S, D] of each layer."""

    def told(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        scaling: float,
        *,
        position_bias: Tensor | None = None,
        **more: Any,
    ) -> Tensor:
        """`mix`, as models tell it to; NotImplementedError for what they may tell besides."""
        refuse(more, "sliding_window", "softcap")
        return self.mix(query, key, value, scaling, position_bias)

    def mix(
        self, query: Tensor, key: Tensor, value: Tensor, scaling: float, bias: Tensor | None
    ) -> Tensor:
        """Attention of `query` [1, H, W, D], [1, W, H, D].

        To the source, if the keys are those of it; else to the past and to the new tokens.
        """
        if any(key is known for known, _ in self.source):
            weights = torch.softmax(query @ key.transpose(2, 3) * scaling, -1)
            return (weights @ value).transpose(1, 2)
        keys, values = self.made[-1]
        self.layers.append(Layer(keys.shape[0], keys.shape[-1], values.shape[-1], None))
        pairs = [*self.past[len(self.made) - 1 : len(self.made)], (keys, values)]
        one = query.squeeze(0) * scaling
        scores = torch.cat([one @ k.transpose(1, 2) for k, _ in pairs], -1)
        scores = scores + self._bias(None, 1, scores.dtype)
        if bias is not None:
            scores = scores + bias.squeeze(0)
        shares = torch.split(torch.softmax(scores, -1), self._sizes(), -1)
        mixed = sum((w @ v for w, (_, v) in zip(shares[1:], pairs[1:], strict=True)),
                    shares[0] @ pairs[0][1])  # fmt: skip
        return mixed.unsqueeze(0).transpose(1, 2)

    def relative(self, attention: Any) -> Tensor:
        """T5's bias by distance, [1, H, W, P + W], of the positions at hand."""
        new = self.positions.squeeze(0)
        rows = torch.arange(self.past_mask.shape[1], dtype=new.dtype)
        seen = torch.cat([rows, new]) if self.past else new
        buckets = attention._relative_position_bucket(
            seen[None] - new[:, None],
            bidirectional=False,
            num_buckets=attention.relative_attention_num_buckets,
            max_distance=attention.relative_attention_max_distance,
        )
        found: Tensor = attention.relative_attention_bias(buckets).permute(2, 0, 1).unsqueeze(0)
        return found


class SourceStep(Named):
    """As `causal_lm.Step`, with `source_keys_<i>` and `source_values_<i>` [H, S, D] behind."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__(LEAD, class_name(model))
        self.model = model
        self.layers = self._look()
        count = range(len(self.layers))
        past = (f"past_{what}_{i}" for i in count for what in ("keys", "values"))
        self.input_names = (*LEAD, *past, *source_names(len(self.layers)))

    def forward(self, *tensors: Tensor) -> dict[str, Tensor]:
        """The tensors in the order of `input_names`."""
        tokens, positions, rows, past_mask, new_mask, *flat = tensors
        pairs = list(zip(flat[::2], flat[1::2], strict=True))
        past, source = pairs[: len(pairs) // 2], pairs[len(pairs) // 2 :]
        whole = [(keys.unsqueeze(0), values.unsqueeze(0)) for keys, values in source]
        run = SourcePass(positions, past_mask, new_mask, past, source=whole)
        logits = self._run(tokens, run)[rows]
        keys, values = (torch.stack(part) for part in zip(*run.made, strict=True))
        return {"logits": logits, "keys": keys, "values": values}

    def _run(self, tokens: Tensor, run: SourcePass) -> Tensor:
        outputs = require("transformers.modeling_outputs", purpose="A language model")
        width = self.model.config.hidden_size
        read = outputs.BaseModelOutput(last_hidden_state=torch.zeros(1, 1, width))
        decoder = self.model.get_decoder()  # type: ignore[no-untyped-call]
        with attending(decoder, run.told), _placed(decoder, run):
            result = self.model(
                decoder_input_ids=tokens, encoder_outputs=read, use_cache=True, return_dict=True,
                cache=_caches(run),
            )  # fmt: skip
        logits: Tensor = result.logits[0]
        return logits

    def _look(self) -> tuple[Layer, ...]:
        """The decoder's layers, seen in a pass over two tokens behind a source of one."""
        mask = torch.ones(2, 2, dtype=torch.bool).tril()
        try:
            with torch.no_grad():
                source = read_source(self.model, torch.zeros((1, 1), dtype=torch.long))
                run = SourcePass(torch.arange(2)[None], mask[:, :0], mask, [], source=source)
                self._run(torch.zeros((1, 2), dtype=torch.long), run)
        except (NotImplementedError, AttributeError, TypeError, ValueError) as error:
            raise unfit(self.model, f"{type(error).__name__}: {error}") from error
        if len(run.layers) != len(source):
            raise unfit(self.model, f"{len(source)} caches, {len(run.layers)} attentions")
        return tuple(run.layers)


class Encode(Named):
    """`source` [1, S] -> `source_keys_<i>` and `source_values_<i>` [H, S, D] of each layer."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__(("source",), class_name(model))
        self.model = model

    def forward(self, source: Tensor) -> dict[str, Tensor]:
        """The decoder's own projections of what the encoder made."""
        pairs = read_source(self.model, source)
        flat = [tensor.squeeze(0).clone() for pair in pairs for tensor in pair]
        return dict(zip(source_names(len(pairs)), flat, strict=True))


def source_names(layers: int) -> list[str]:
    """Of the source's keys and values, layer by layer."""
    return [f"source_{what}_{i}" for i in range(layers) for what in ("keys", "values")]


def read_source(model: PreTrainedModel, source: Tensor) -> Pairs:
    """Keys and values [1, H, S, D] of each layer: what the decoder caches at its first token."""
    library = require("transformers", purpose="A language model")
    caches = library.EncoderDecoderCache(library.DynamicCache(), library.DynamicCache())
    first = torch.zeros((1, 1), dtype=torch.long)
    model(input_ids=source, decoder_input_ids=first, use_cache=True, cache=caches)
    return [(layer.keys, layer.values) for layer in caches.cross_attention_cache.layers]


def _caches(run: SourcePass) -> Any:
    """What the decoder takes for its caches: the pass, and the source as read already."""
    base = require("transformers", purpose="A language model").EncoderDecoderCache

    class Caches(base):  # type: ignore[misc, valid-type]
        def __init__(self) -> None:
            layers = [SimpleNamespace(keys=keys, values=values) for keys, values in run.source]
            self.self_attention_cache = run
            self.cross_attention_cache = SimpleNamespace(layers=layers)
            self.is_updated = dict.fromkeys(range(len(layers)), True)

        def get_seq_length(self, *_: Any) -> int:
            return 0

    return Caches()


@contextlib.contextmanager
def _placed(decoder: nn.Module, run: SourcePass) -> Iterator[None]:
    """In the block the decoder's tokens are at the positions of `run`; behind it as before."""
    with contextlib.ExitStack() as stack:
        for module in decoder.modules():
            _place(module, run, stack)
        yield


def _place(module: nn.Module, run: SourcePass, stack: contextlib.ExitStack) -> None:
    """Let a module that numbers positions by itself take those of the pass."""
    numbering = getattr(module, POSITIONS, None)
    if isinstance(numbering, nn.Module):

        def place(_module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
            return args, {**kwargs, "position_ids": run.positions.squeeze(0)}

        stack.callback(numbering.register_forward_pre_hook(place, with_kwargs=True).remove)
    if getattr(module, RELATIVE, None) is not None:
        module.compute_bias = lambda *_args, **_kwargs: run.relative(module)  # type: ignore[assignment]
        stack.callback(module.__dict__.pop, "compute_bias")
