"""Trained language models to artifacts, one for each engine, and what drafts are worth to them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import sdk
from sdk.artifact import Artifact
from sdk.errors import InputError, ParityError, QuantizationError
from sdk.generating import GenerationResult
from sdk.model import Model
from sdk.progress import Report
from sdk.recipes.data.prompts import Asked
from sdk.recipes.training.export import prefixed, present_engines
from sdk.target import Target

ENGINES = ("onnxruntime", "openvino")
"""Those that run language models."""
PRECISION = "fp32"
DEPTH = 4
"""Tokens of a draft where acceptance is measured, so that the figures do not depend on speeds."""


@dataclass(frozen=True)
class Compiled:
    """Artifacts by the target that was asked for, and what each was refused for."""

    artifacts: dict[str, Artifact]
    refused: dict[str, str]


def compile_language(
    folder: Path,
    output: Path,
    *,
    engines: Sequence[str],
    precision: str,
    progress: Report,
) -> Compiled:
    """Compile a Hugging Face folder for each engine into `output/<engine>.edge`.

    A precision that does not pass its gates leaves the engine with fp32, and the reason.
    """
    made: dict[str, Artifact] = {}
    refused: dict[str, str] = {}
    for engine in usable(engines):
        target = Target(engine, precision=precision)
        build = partial(
            sdk.compile,
            folder,
            task="text-generation",
            output=output / f"{engine}.edge",
            overwrite=True,
            progress=prefixed(f"{folder.name} for {engine}", progress),
        )
        try:
            made[str(target)] = build(target=target)
        except (ParityError, QuantizationError) as error:
            if precision == PRECISION:
                raise
            refused[str(target)] = str(error)
            target = target.with_precision(PRECISION)
            made[str(target)] = build(target=target)
    return Compiled(made, refused)


def usable(engines: Sequence[str]) -> list[str]:
    """Of the engines asked for, or else of all present, those that run language models."""
    found = [engine for engine in engines or present_engines() if engine in ENGINES]
    if not found:
        raise InputError(
            "No engine here runs language models.",
            expected=f"one of {', '.join(ENGINES)}",
            got=", ".join(engines or present_engines()) or "none",
            fix="pip install 'edge-sdk[onnxruntime]'",
        )
    return found


def fastest(
    artifacts: Mapping[str, Artifact], prompts: Sequence[str], count: int
) -> tuple[str, dict[str, float]]:
    """The target whose artifact decodes these prompts fastest; tokens per second of each."""
    speeds = {}
    for target, artifact in artifacts.items():
        with sdk.load(artifact.path) as model:
            model.generate(prompts[0], max_new_tokens=count, eos=())  # binds, prepares shapes
            results = [model.generate(p, max_new_tokens=count, eos=()) for p in prompts]
        speeds[target] = _speed(results)
    return max(speeds, key=lambda target: speeds[target]), speeds


def speculation(
    model: Model,
    drafts: Mapping[str, Model],
    prompts: Mapping[str, Sequence[Asked]],
    count: int,
    progress: Report,
) -> list[dict[str, Any]]:
    """A row for each set of prompts and drafter: speed, and acceptance at a fixed depth.

    All decode greedily. `same`: whether the output is that of plain decoding, token by token.
    """
    drafters: dict[str, Any] = {"none": None, "prompt lookup": "prompt_lookup", **drafts}
    pairs = list(product(prompts.items(), drafters.items()))
    rows: list[dict[str, Any]] = []
    plain: list[GenerationResult] = []
    for done, ((kind, asked), (name, drafter)) in enumerate(pairs):
        progress(f"{kind} prompts, draft: {name}", done, len(pairs))
        texts = [one.prompt for one in asked]
        results = list(_generated(model, texts, drafter, count, None))
        if drafter is None:
            plain = results
            fixed = results
        else:
            fixed = list(_generated(model, texts, drafter, count, DEPTH))
        rows.append(_row(kind, name, results, fixed, plain))
    return rows


def _generated(
    model: Model, prompts: Sequence[str], drafter: Any, count: int, depth: int | None
) -> Iterator[GenerationResult]:
    for prompt in prompts:
        yield model.generate(
            prompt, max_new_tokens=count, eos=(), drafter=drafter, num_draft_tokens=depth
        )


def _row(
    kind: str,
    name: str,
    results: Sequence[GenerationResult],
    fixed: Sequence[GenerationResult],
    plain: Sequence[GenerationResult],
) -> dict[str, Any]:
    passes = sum(one.stats.target_forward_passes for one in fixed)
    proposed = sum(one.stats.draft_tokens_proposed for one in fixed)
    accepted = sum(one.stats.draft_tokens_accepted for one in fixed)
    both = zip((*results, *fixed), (*plain, *plain), strict=True)
    return {
        "prompts": kind,
        "draft": name,
        "tokens_per_second": _speed(results),
        "speedup": _speed(results) / _speed(plain),
        "tokens_per_pass": sum(one.stats.new_tokens for one in fixed) / passes,
        "acceptance": accepted / proposed if proposed else None,
        "same": all(ours.tokens == theirs.tokens for ours, theirs in both),
    }


def _speed(results: Sequence[GenerationResult]) -> float:
    """Median over the prompts of tokens per second after the first one."""
    return median(1000 / max(one.stats.tpot_ms, 1e-9) for one in results)
