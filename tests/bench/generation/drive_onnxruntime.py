"""ONNX Runtime GenAI on a model of its own builder, both at their defaults."""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime_genai as genai
from protocol import Answer, Marks, Mode, serve

DRAFTED, LOOKED_UP, NGRAM = 4, 8, 3


def built(model: str, name: str, options: argparse.Namespace) -> Path:
    """The builder's folder; one that is there already is kept."""
    path = Path(options.work) / f"onnxruntime-{name}-{options.precision}"
    if not (path / "genai_config.json").is_file():
        command = [
            sys.executable, "-m", "onnxruntime_genai.models.builder", "-i", model, "-o", str(path),
            "-p", options.precision, "-e", "cpu", "-c", f"{options.work}/cache",
        ]  # fmt: skip
        subprocess.run(command, check=True)
    return path


def configured(path: Path, threads: int) -> dict[str, Any]:
    """Its settings, with our number of threads; an output ends at the rarest token alone."""
    config: dict[str, Any] = json.loads((path / "genai_config.json").read_text())
    config["model"]["decoder"]["session_options"]["intra_op_num_threads"] = threads
    config["model"]["eos_token_id"] = config["model"]["vocab_size"] - 1
    return config


def with_draft(target: Path, draft: Path, threads: int) -> Path:
    """A folder with both: the draft's file must be inside."""
    path = target.with_name(f"{target.name}-draft")
    shutil.copytree(target, path, dirs_exist_ok=True)
    shutil.copytree(draft, path / "draft", dirs_exist_ok=True)
    config, other = configured(target, threads), configured(draft, threads)
    config["model"]["draft"] = {**other["model"]["decoder"], "filename": "draft/model.onnx"}
    config["speculative"] = {"max_draft_tokens": DRAFTED}
    (path / "genai_config.json").write_text(json.dumps(config))
    return path


def modes(options: argparse.Namespace) -> Mapping[str, Mode]:
    """Plain, prompt lookup, and a draft model."""
    target = built(options.target, "target", options)
    plain = target.with_name(f"{target.name}-plain")
    shutil.copytree(target, plain, dirs_exist_ok=True)
    config = configured(target, options.threads)
    (plain / "genai_config.json").write_text(json.dumps(config))
    model = genai.Model(str(plain))
    found = {"plain": mode(model, None), "lookup": mode(model, LOOKED_UP)}
    if options.draft:
        draft = built(options.draft, "draft", options)
        both = with_draft(target, draft, options.threads)
        found["draft"] = mode(genai.Model(str(both)), None)
    return found


def mode(model: genai.Model, lookup: int | None) -> Mode:
    def ask(prompt: list[int], new_tokens: int, marks: Marks) -> Answer:
        params = genai.GeneratorParams(model)
        params.set_search_options(max_length=len(prompt) + new_tokens, do_sample=False)
        if lookup is not None:
            params.set_speculative_options(ngram_size=NGRAM, max_draft_tokens=lookup)
        generator = genai.Generator(model, params)
        generator.append_tokens(np.array(prompt, np.int32))
        first = 0
        while not generator.is_done():
            generator.generate_next_token()
            if not first:
                first = len(generator.get_sequence(0)) - len(prompt)
                marks.token()
        return Answer(
            [int(token) for token in generator.get_sequence(0)[len(prompt) :]], first=first
        )

    return ask


if __name__ == "__main__":
    serve(modes)
