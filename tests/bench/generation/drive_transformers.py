"""transformers in PyTorch, in float32."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

import torch
import transformers
from protocol import Answer, Marks, Mode, serve

LOOKED_UP = 8


class Counter(transformers.generation.BaseStreamer):
    """Marks the first new token; the prompt comes first."""

    def __init__(self, marks: Marks) -> None:
        self.marks, self.calls = marks, 0

    def put(self, value: Any) -> None:
        self.calls += 1
        if self.calls == 2:
            self.marks.token()
            self.first = value.numel()

    def end(self) -> None:
        """Nothing is left to do."""


def modes(options: argparse.Namespace) -> Mapping[str, Mode]:
    """Plain, prompt lookup, and a draft model."""
    torch.set_num_threads(options.threads)
    load = transformers.AutoModelForCausalLM.from_pretrained
    target = load(options.target, dtype=torch.float32)
    more: dict[str, dict[str, Any]] = {
        "plain": {}, "lookup": {"prompt_lookup_num_tokens": LOOKED_UP},
    }  # fmt: skip
    if options.draft:
        more["draft"] = {"assistant_model": load(options.draft, dtype=torch.float32)}
    return {name: mode(target, extra) for name, extra in more.items()}


def mode(model: Any, extra: dict[str, Any]) -> Mode:
    model.generation_config = transformers.GenerationConfig(pad_token_id=0)

    def ask(prompt: list[int], new_tokens: int, marks: Marks) -> Answer:
        ids, counter = torch.tensor([prompt]), Counter(marks)
        config = transformers.GenerationConfig(
            max_new_tokens=new_tokens, do_sample=False, pad_token_id=0, eos_token_id=None
        )
        with torch.inference_mode():
            made = model.generate(
                ids, attention_mask=torch.ones_like(ids), generation_config=config,
                streamer=counter, **extra,
            )  # fmt: skip
        return Answer(made[0, len(prompt) :].tolist(), first=getattr(counter, "first", 0))

    return ask


if __name__ == "__main__":
    serve(modes)
