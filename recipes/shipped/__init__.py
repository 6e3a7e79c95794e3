"""A finished run of `causal_lm` that comes with the package: the models of its preset `shipped`.

They have learnt from Python's standard library, which is under the PSF licence; MODEL_CARD.md
beside this file says how and how well. Weights are float16 here and float32 once taken out.
`python -m sdk.recipes.shipped RUN` takes in another run.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from sdk.errors import InputError
from sdk.recipes.card import CARD

HERE = Path(__file__).parent
STAGES = ("target", "draft", "draft-distilled")
NAMES = (
    "corpus.json",
    "tokenizer.json",
    "prompts/completions.jsonl",
    "prompts/edits.jsonl",
    *(f"{stage}-{what}.json" for stage in STAGES for what in ("test", "training")),
)


def take_out(run: Path) -> None:
    """Make `run` the folder of a run whose training is finished."""
    _copy(HERE, run, torch.float32)


def take_in(run: Path, folder: Path = HERE) -> None:
    """Keep what `take_out` needs of a run; InputError where it is not finished."""
    missing = [name for name in (*NAMES, *_weights(), CARD) if not (run / name).is_file()]
    if missing:
        raise InputError(
            f"{run} is no finished run of causal_lm.",
            expected="its folder <output>.run, without shallow_layers",
            got=f"no {', '.join(missing)}",
        )
    _copy(run, folder, torch.float16)
    shutil.copy(run / CARD, folder / CARD)


def _copy(source: Path, to: Path, dtype: torch.dtype) -> None:
    for name in NAMES:
        (to / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source / name, to / name)
    for name in _weights():
        weights = load_file(source / name)
        save_file({key: weight.to(dtype) for key, weight in weights.items()}, to / name)


def _weights() -> tuple[str, ...]:
    return tuple(f"{stage}.safetensors" for stage in STAGES)
