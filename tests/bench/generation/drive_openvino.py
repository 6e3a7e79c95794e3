"""OpenVINO GenAI on a model exported by optimum-intel, both at their defaults."""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import openvino as ov
import openvino_genai as genai
from protocol import Answer, Marks, Mode, serve

DRAFTED, NGRAM = 4, 3


def exported(model: str, name: str, options: argparse.Namespace) -> str:
    """The exported folder; one that is there already is kept."""
    path = Path(options.work) / f"openvino-{name}-{options.precision}"
    if not (path / "openvino_model.bin").is_file():
        command = [
            str(Path(sys.executable).with_name("optimum-cli")), "export", "openvino", "-m", model,
            "--task", "text-generation-with-past", "--weight-format", options.precision, str(path),
        ]  # fmt: skip
        subprocess.run(command, check=True)
    return str(path)


class Counter(genai.StreamerBase):
    """Marks the first token."""

    def __init__(self, marks: Marks) -> None:
        super().__init__()
        self.marks, self.first = marks, 0

    def write(self, token: int | list[int]) -> genai.StreamingStatus:
        if not self.first:
            self.first = len(token) if isinstance(token, list) else 1
            self.marks.token()
        return genai.StreamingStatus.RUNNING

    def end(self) -> None:
        """Nothing is left to do."""


def modes(options: argparse.Namespace) -> Mapping[str, Mode]:
    """Plain, prompt lookup, and a draft model."""
    target, properties = (
        exported(options.target, "target", options),
        {"INFERENCE_NUM_THREADS": options.threads},
    )
    pipelines = {
        "plain": genai.LLMPipeline(target, "CPU", **properties),
        "lookup": genai.LLMPipeline(target, "CPU", prompt_lookup=True, **properties),
    }
    if options.draft:
        draft = genai.draft_model(exported(options.draft, "draft", options), "CPU", **properties)
        pipelines["draft"] = genai.LLMPipeline(target, "CPU", draft_model=draft, **properties)
    return {name: mode(name, pipeline) for name, pipeline in pipelines.items()}


def mode(name: str, pipeline: genai.LLMPipeline) -> Mode:
    def ask(prompt: list[int], new_tokens: int, marks: Marks) -> Answer:
        config = genai.GenerationConfig()
        config.max_new_tokens, config.ignore_eos, config.do_sample = new_tokens, True, False
        if name != "plain":
            config.num_assistant_tokens = DRAFTED
        if name == "lookup":
            config.max_ngram_size = NGRAM
        ids = np.array([prompt], np.int64)
        fed = genai.TokenizedInputs(ov.Tensor(ids), ov.Tensor(np.ones_like(ids)))
        counter = Counter(marks)
        result = pipeline.generate(fed, config, counter)
        return Answer(list(result.tokens[0]), first=counter.first)

    return ask


if __name__ == "__main__":
    serve(modes)
