"""A causal language model of Hugging Face for generation: its step, inputs, tokenizer, and proof.

The step is compared with the model's own forward pass before anything is compiled, on a chain and
on a tree, and what transformers itself generates is recorded for the gate on the engine.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor

from sdk.compilers.causal_lm import FROM, LEAD, Step, unfit
from sdk.compilers.dims import Proposed
from sdk.compilers.huggingface_files import FAILURES, PURPOSE, read_json
from sdk.compilers.huggingface_inputs import longest, ordinary
from sdk.compilers.kernel_attention import ENGINE, steps
from sdk.compilers.segments import Layers, check_parts
from sdk.errors import InputError
from sdk.extras import quiet, require
from sdk.language import LANGUAGE, TEMPLATE, TOKENIZER, Continuation, Language
from sdk.parity import TOLERANCE, compare
from sdk.signature import Array, Dim

if TYPE_CHECKING:
    from transformers import PreTrainedModel

MAX_CONTEXT = 4096
PROMPT, CONTINUED = 8, 32
READ, ROOM = 40, 64  # tokens in the past of the example inputs, and rows for them
LEAST_PAST = 16
CHAIN = (-1, 0, 1, 2)
TREE = (-1, 0, 0, 1)  # parents: two guesses for the second token, one behind the first of them
Feed = dict[str, Array]


@dataclass(frozen=True)
class Generative:
    """A step with all that its artifact needs."""

    step: Step
    inputs: Feed
    """One token behind a real past."""
    checks: list[Feed]
    """A tree behind it, and a prompt without a past."""
    dynamic: Proposed | None
    """None where all shapes are fixed."""
    files: Mapping[str, bytes]
    language: Language | None
    """None of a segment that goes on from another's features: it generates nothing by itself."""
    calibration: Sequence[Feed] = ()
    """Steps in real texts, where the target needs some."""


def generative(
    model: PreTrainedModel,
    folder: Path | None,
    *,
    features: bool = False,
    layers: Layers | None = None,
    attention: str = ENGINE,
) -> Generative:
    """`model`, or some of its layers, as a step; `sdk.compile` says what the options are.

    InputError where it cannot be one, or its step computes something else.
    """
    whole, segment = steps(attention)
    if layers is None:
        step = whole(model, features=features)
    elif features:
        raise InputError("Some layers give their features anyway.", got="features and layers")
    else:
        step = segment(model, layers)
        if layers[0]:
            return _continued(step, model, layers)
        model = step.model
    capacity, config = _capacity(model), model.config.get_text_config()
    read, room = min(READ, capacity - len(TREE)), min(ROOM, capacity)
    tokens = ordinary(np.random.default_rng(0), config, read + len(TREE))
    past = _past(step, tokens[:, :read], room)
    tree = _feed(tokens[:, read:], TREE, read, past)
    _check(step, tokens[0], tree)
    files = _files(folder)
    continuation = _continuation(model, tokens[:, :PROMPT], min(CONTINUED, capacity - PROMPT))
    language = Language(_eos(model), continuation, _marks(folder))
    files[LANGUAGE] = language.dumps()
    return Generative(
        step=step,
        inputs=_feed(tokens[:, read : read + 1], (-1,), read, past),
        checks=[tree, _feed(tokens[:, :PROMPT], range(-1, PROMPT - 1), 0, _none(step, room))],
        dynamic=_dims(step, capacity, room),
        files=files,
        language=language,
    )


def _capacity(model: PreTrainedModel) -> int:
    capacity = min(MAX_CONTEXT, longest(model, model.config.get_text_config()))
    if capacity < LEAST_PAST:
        raise unfit(model, f"a context of {capacity} tokens")
    return capacity


def _continued(step: Step, model: PreTrainedModel, layers: Layers) -> Generative:
    """A segment that goes on from the features of the layers before it, on features of tokens."""
    capacity, config = _capacity(model), model.config.get_text_config()
    read, room = min(READ, capacity - len(TREE)), min(ROOM, capacity)
    tokens = ordinary(np.random.default_rng(0), config, read + len(TREE))
    features = check_parts(model, layers, tokens).numpy()
    past, behind = _past(step, features[:, :read], room), features[:, read:]
    return Generative(
        step=step,
        inputs=_feed(behind[:, :1], (-1,), read, past),
        checks=[_feed(behind, TREE, read, past)],
        dynamic=_dims(step, capacity, room),
        files={},
        language=None,
    )


def _dims(step: Step, capacity: int, room: int) -> Proposed:
    width, rows = Dim("width", 1, 1, capacity), Dim("rows", 1, 1, capacity)
    past = Dim("past", LEAST_PAST, room, capacity)
    lead = ({1: width}, {1: width}, {0: rows}, {0: width, 1: past}, {0: width, 1: width})
    named = dict(zip(step.input_names, lead, strict=False))
    return Proposed(named | {name: {1: past} for name in step.input_names[len(LEAD) :]})


def _feed(given: Array, parents: Sequence[int], read: int, past: Feed) -> Feed:
    """Inputs for tokens [1, W], or features [1, W, F], behind `read` rows of `past`."""
    width, room = given.shape[1], next(iter(past.values())).shape[1]
    seen, depths = np.eye(width, dtype=bool), np.zeros(width, np.int64)
    for node, parent in enumerate(parents):
        if parent >= 0:
            seen[node] |= seen[parent]
            depths[node] = depths[parent] + 1
    shown = np.zeros((width, room), bool)
    shown[:, :read] = True
    lead = (given, read + depths[None], np.arange(width), shown, seen)
    names = (LEAD[0] if given.ndim == 2 else FROM, *LEAD[1:])
    return {**dict(zip(names, lead, strict=True)), **past}


def _none(step: Step, room: int) -> Feed:
    """A past of which nothing is there yet."""
    return {
        name: np.zeros((layer.heads, room, width), np.float32)
        for index, layer in enumerate(step.layers)
        for name, width in (
            (f"past_keys_{index}", layer.key_width),
            (f"past_values_{index}", layer.value_width),
        )
    }


def _past(step: Step, given: Array, room: int) -> Feed:
    """The keys and values of tokens or features, with rows of zeros behind them."""
    made = _run(step, _feed(given, range(-1, given.shape[1] - 1), 0, _none(step, room)))
    past = _none(step, room)
    for index in range(len(step.layers)):
        for what in ("keys", "values"):
            past[f"past_{what}_{index}"][:, : given.shape[1]] = made[what][index]
    return past


def _run(step: Step, feed: Feed) -> Feed:
    with torch.no_grad():
        outputs = step(*(torch.from_numpy(feed[name]) for name in step.input_names))
    return {name: tensor.numpy() for name, tensor in outputs.items()}


def _check(step: Step, tokens: Array, tree: Feed) -> None:
    """InputError unless the step gives the model's own logits, on each path of a tree."""
    read = len(tokens) - len(TREE)
    got = _run(step, tree)["logits"]
    want = np.stack([_own(step, tokens, read, path) for path in _paths()])
    report = compare({"logits": got}, {"logits": want}, TOLERANCE["fp32"])
    if not report.ok:
        raise unfit(step.model, f"other logits than its own forward pass gives: {report}")


def _paths() -> Iterator[list[int]]:
    """From the root to each node of the tree."""
    paths: list[list[int]] = []
    for node, parent in enumerate(TREE):
        paths.append([*(paths[parent] if parent >= 0 else []), node])
        yield paths[-1]


def _own(step: Step, tokens: Array, read: int, path: Sequence[int]) -> Array:
    """The model's own last logits after the context and a path of the tree."""
    ids = np.concatenate([tokens[:read], tokens[[read + node for node in path]]])
    model: PreTrainedModel = step.model
    with torch.no_grad():
        logits: Array = model(input_ids=torch.from_numpy(ids[None])).logits[0, -1].numpy()
    return logits


def _continuation(model: PreTrainedModel, prompt: Array, count: int) -> Continuation:
    """What transformers generates: `count` tokens whatever they are."""
    settings = require("transformers", purpose=PURPOSE).GenerationConfig(
        max_new_tokens=count,
        min_new_tokens=count,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
        pad_token_id=0,
    )
    ids, generate = torch.from_numpy(prompt), cast(Any, model).generate
    try:
        with torch.no_grad(), quiet("transformers"):
            made = generate(ids, generation_config=settings, attention_mask=torch.ones_like(ids))
    except FAILURES as error:
        raise unfit(model, f"{type(error).__name__} in its generate(): {error}") from error
    return Continuation(
        prompt=tuple(prompt[0].tolist()),
        tokens=tuple(made.sequences[0, prompt.shape[1] :].tolist()),
        margins=tuple(_margin(logits[0]) for logits in made.logits),
    )


def _margin(logits: Tensor) -> float:
    first, second = logits.topk(2).values.tolist()
    return float((first - second) / max(float(logits.std()), 1e-6))


def _eos(model: PreTrainedModel) -> tuple[int, ...]:
    """End-of-sequence tokens of the generation settings, else of the configuration."""
    for settings in (model.generation_config, model.config.get_text_config()):
        eos = getattr(settings, "eos_token_id", None)
        if eos is not None:
            found = tuple(eos) if isinstance(eos, (list, tuple)) else (int(eos),)
            return tuple(token for token in found if token < model.config.vocab_size)
    return ()


def _files(folder: Path | None) -> dict[str, bytes]:
    """The tokenizer as the `tokenizers` library reads it, and the chat template."""
    tokenizer = _tokenizer(folder)
    if tokenizer is None:
        return {}
    files = {TOKENIZER: tokenizer.backend_tokenizer.to_str().encode()}
    template = tokenizer.chat_template
    if isinstance(template, dict):
        template = template.get("default")
    return files | ({TEMPLATE: template.encode()} if isinstance(template, str) else {})


def _marks(folder: Path | None) -> dict[str, str]:
    tokenizer = _tokenizer(folder)
    if tokenizer is None:
        return {}
    return {name: str(text) for name, text in tokenizer.special_tokens_map.items()
            if isinstance(text, str)}  # fmt: skip


def _tokenizer(folder: Path | None) -> Any:
    """The folder's tokenizer, if it is one of the `tokenizers` library; None without a folder's."""
    if folder is None or not (folder / TOKENIZER).is_file():
        return None
    read_json(folder, TOKENIZER)  # an InputError of ours where it is no JSON
    auto = require("transformers", purpose=PURPOSE).AutoTokenizer
    try:
        with quiet("transformers"):
            return auto.from_pretrained(
                str(folder), local_files_only=True, trust_remote_code=False, use_fast=True
            )
    except FAILURES as error:
        raise InputError(
            f"The tokenizer in {folder} cannot be loaded.",
            got=f"{type(error).__name__}: {error}",
            fix="write it again with tokenizer.save_pretrained(folder)",
        ) from error
