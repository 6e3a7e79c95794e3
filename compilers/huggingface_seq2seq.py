"""An encoder-decoder of Hugging Face for generation: its two functions, inputs, and proof.

As for causal language models, the step is compared with the model's own forward pass before
anything is compiled, and what transformers generates is recorded for the gate on the engine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch

from sdk.compilers.causal_lm import unfit
from sdk.compilers.dims import Proposed
from sdk.compilers.huggingface_files import FAILURES, PURPOSE
from sdk.compilers.huggingface_generation import (
    CONTINUED,
    LEAST_PAST,
    MAX_CONTEXT,
    READ,
    ROOM,
    TREE,
    Feed,
    _dims,
    _eos,
    _feed,
    _files,
    _margin,
    _marks,
    _none,
    _paths,
)
from sdk.compilers.huggingface_inputs import longest, ordinary
from sdk.compilers.seq2seq import Encode, SourceStep, source_names
from sdk.extras import quiet, require
from sdk.language import LANGUAGE, Continuation, Language
from sdk.parity import TOLERANCE, compare
from sdk.signature import Array, Dim

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SOURCE = 24
"""Tokens of the example's source."""


@dataclass(frozen=True)
class Translating:
    """A step and what reads the source, with all that their artifact needs."""

    step: SourceStep
    inputs: Feed
    checks: list[Feed]
    dynamic: Proposed
    encode: Encode
    source: Feed
    source_dynamic: Proposed
    files: Mapping[str, bytes]
    language: Language


def translating(model: PreTrainedModel, folder: Path | None) -> Translating:
    """`model` as two functions; InputError where it cannot be, or they compute something else."""
    config = model.config
    capacity = min(MAX_CONTEXT, longest(model, config))
    start = getattr(model.generation_config, "decoder_start_token_id", None)
    start = getattr(config, "decoder_start_token_id", None) if start is None else start
    if not config.is_encoder_decoder or start is None or capacity < LEAST_PAST:
        raise unfit(model, f"a context of {capacity} tokens that begins with {start}")
    step, encode = SourceStep(model), Encode(model)
    read, room = min(READ, capacity - len(TREE)), min(ROOM, capacity)
    rng = np.random.default_rng(0)
    source = ordinary(rng, config, min(SOURCE, capacity))
    tokens = ordinary(rng, config, read + len(TREE))
    seen = _run(encode, {"source": source})
    past = _past(step, tokens[:, :read], room, seen)
    tree = _feed(tokens[:, read:], TREE, read, past) | seen
    _check(step, source, tokens[0], tree)
    continuation = _continuation(model, source, start, min(CONTINUED, capacity - 1))
    language = Language(_eos(model), continuation, _marks(folder), start)
    first = np.array([[start]])
    return Translating(
        step=step,
        inputs=_feed(tokens[:, read : read + 1], (-1,), read, past) | seen,
        checks=[tree, _feed(first, (-1,), 0, _none(cast(Any, step), room)) | seen],
        dynamic=_dynamic(step, capacity, room),
        encode=encode,
        source={"source": source},
        source_dynamic=Proposed({"source": {1: Dim("source", 1, SOURCE, capacity)}}),
        files=_files(folder) | {LANGUAGE: language.dumps()},
        language=language,
    )


def _dynamic(step: SourceStep, capacity: int, room: int) -> Proposed:
    """Those of a step, with the source's length."""
    source, names = Dim("source", 1, SOURCE, capacity), source_names(len(step.layers))
    found = _dims(cast(Any, step), capacity, room)
    return Proposed({**found, **{name: {1: source} for name in names}})


def _past(step: SourceStep, tokens: Array, room: int, seen: Feed) -> Feed:
    """The keys and values of `tokens`, with rows of zeros behind them."""
    past = _none(cast(Any, step), room)
    chain = range(-1, tokens.shape[1] - 1)
    made = _run(step, _feed(tokens, chain, 0, past) | seen)
    for index in range(len(step.layers)):
        for what in ("keys", "values"):
            past[f"past_{what}_{index}"][:, : tokens.shape[1]] = made[what][index]
    return past


def _run(module: SourceStep | Encode, feed: Feed) -> Feed:
    with torch.no_grad():
        outputs = module(*(torch.from_numpy(feed[name]) for name in module.input_names))
    return {name: tensor.numpy() for name, tensor in outputs.items()}


def _check(step: SourceStep, source: Array, tokens: Array, tree: Feed) -> None:
    """InputError unless the step gives the model's own logits, on each path of a tree."""
    read = len(tokens) - len(TREE)
    got = _run(step, tree)["logits"]
    want = np.stack([_own(step.model, source, tokens, read, path) for path in _paths()])
    report = compare({"logits": got}, {"logits": want}, TOLERANCE["fp32"])
    if not report.ok:
        raise unfit(step.model, f"other logits than its own forward pass gives: {report}")


def _own(
    model: PreTrainedModel, source: Array, tokens: Array, read: int, path: Sequence[int]
) -> Array:
    """The model's own last logits after the context and a path of the tree."""
    ids = np.concatenate([tokens[:read], tokens[[read + node for node in path]]])
    with torch.no_grad():
        result = model(
            input_ids=torch.from_numpy(source), decoder_input_ids=torch.from_numpy(ids[None])
        )
    logits: Array = result.logits[0, -1].numpy()
    return logits


def _continuation(model: PreTrainedModel, source: Array, start: int, count: int) -> Continuation:
    """What transformers generates: `count` tokens whatever they are."""
    settings = require("transformers", purpose=PURPOSE).GenerationConfig(
        max_new_tokens=count, min_new_tokens=count, do_sample=False, output_logits=True,
        return_dict_in_generate=True, pad_token_id=0, decoder_start_token_id=start,
    )  # fmt: skip
    ids, generate = torch.from_numpy(source), cast(Any, model).generate
    try:
        with torch.no_grad(), quiet("transformers"):
            made = generate(ids, generation_config=settings, attention_mask=torch.ones_like(ids))
    except FAILURES as error:
        raise unfit(model, f"{type(error).__name__} in its generate(): {error}") from error
    return Continuation(
        prompt=(start,),
        tokens=tuple(made.sequences[0, 1:].tolist()),
        margins=tuple(_margin(logits[0]) for logits in made.logits),
        source=tuple(source[0].tolist()),
    )
