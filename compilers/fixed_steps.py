"""Steps of fixed shapes, for NPUs: always W tokens behind room for P, most of which may be unused.

What is fed beyond the tokens at hand is filler that sees itself alone and that nobody sees. The
inputs that such a step is quantized on are texts that the model itself writes, cut at many places,
as LLM-QAT (Liu et al., arXiv:2305.17888, section 3.1) does where there are no data.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch

from sdk.compilers.causal_lm import FROM, LEAD, Step, unfit
from sdk.compilers.huggingface_files import FAILURES, PURPOSE
from sdk.compilers.huggingface_generation import Feed, Generative, _feed, _none, _run
from sdk.compilers.huggingface_inputs import ordinary
from sdk.errors import InputError
from sdk.extras import quiet, require
from sdk.signature import Array

if TYPE_CHECKING:
    from transformers import PreTrainedModel

WIDTH, CONTEXT = 8, 256
TEXTS, CUTS = 4, 4
PROMPT = 4


def fixed(made: Generative, *, width: int | None, context: int | None) -> Generative:
    """`made` with inputs of fixed shapes, and inputs to calibrate on.

    InputError where the model's context has no room for them.
    """
    assert made.dynamic is not None
    rows = made.dynamic["past_keys_0"][1]
    width, context = width or WIDTH, min(context or CONTEXT, rows.max)
    if FROM in made.step.input_names:
        raise InputError("Segments and features have no form for NPUs.", got=FROM)
    if not 2 <= width <= context // 2:
        raise InputError(
            "A step of this width does not fit into its context.",
            expected=f"2 to {context // 2} tokens at once",
            got=f"width {width}, context {context}",
        )
    return replace(
        made,
        inputs=filled(made.inputs, width, context),
        checks=[filled(feed, width, context) for feed in made.checks
                if feed["tokens"].shape[1] <= width],
        dynamic=None,
        calibration=_calibration(made.step, width, context),
    )  # fmt: skip


def filled(feed: Feed, width: int, context: int) -> Feed:
    """The same tokens behind the same past, with filler behind both."""
    tokens, count = feed["tokens"], feed["tokens"].shape[1]
    more = width - count
    positions = np.pad(feed["positions"], ((0, 0), (0, more)), mode="edge")
    shown = np.zeros((width, context), bool)
    read = int(feed["past_mask"][0].sum())
    shown[:count, :read] = True
    seen = np.eye(width, dtype=bool)
    seen[:count, :count] = feed["new_mask"]
    lead = (np.pad(tokens, ((0, 0), (0, more))), positions, np.arange(width), shown, seen)
    past = {}
    for name in feed.keys() - set(LEAD):
        heads, _, size = feed[name].shape
        past[name] = np.zeros((heads, context, size), np.float32)
        past[name][:, :read] = feed[name][:, :read]
    return {name: dict(zip(LEAD, lead, strict=True)).get(name, past.get(name)) for name in feed}  # type: ignore[misc]


def _calibration(step: Step, width: int, context: int) -> list[Feed]:
    """Steps in texts of the model's own, at places spread over the context."""
    feeds = []
    for text in _texts(step.model, context):
        count = text.shape[1]
        made = _run(step, _feed(text, range(-1, count - 1), 0, _none(step, count)))
        for read in np.linspace(0, count - width, CUTS).astype(int):
            past = _none(step, context)
            for index in range(len(step.layers)):
                for what in ("keys", "values"):
                    past[f"past_{what}_{index}"][:, :read] = made[what][index][:, :read]
            tokens = text[:, read : read + width]
            feeds.append(_feed(tokens, range(-1, width - 1), int(read), past))
    return feeds


def _texts(model: PreTrainedModel, context: int) -> list[Array]:
    """Samples [1, context] at temperature 1, behind a few random tokens; the same each time."""
    config = model.config.get_text_config()
    settings = require("transformers", purpose=PURPOSE).GenerationConfig(
        max_new_tokens=context - PROMPT, min_new_tokens=context - PROMPT, do_sample=True,
        top_k=0, pad_token_id=0,
    )  # fmt: skip
    prompts = ordinary(np.random.default_rng(0), config, TEXTS * PROMPT).reshape(TEXTS, PROMPT)
    ids, generate = torch.from_numpy(prompts), cast(Any, model).generate
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad(), quiet("transformers"):
            torch.manual_seed(0)
            made = generate(ids, generation_config=settings, attention_mask=torch.ones_like(ids))
    except FAILURES as error:
        raise unfit(model, f"{type(error).__name__} in its generate(): {error}") from error
    return [text[None].numpy() for text in made]
