"""Training and compiling a feature head: EAGLE's losses on the target's own hidden states."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as nnf
from torch import Tensor

import sdk
from sdk.artifact import Artifact
from sdk.compilers.causal_lm import FROM
from sdk.compilers.dims import Proposed
from sdk.compilers.feature_head import FeatureHead, HeadSize, HeadStep
from sdk.signature import Dim

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LEAST_PAST, ROOM, READ = 16, 64, 40


@dataclass(frozen=True, kw_only=True)
class HeadTraining:
    """EAGLE's recipe: weights of the two losses, AdamW, noise on the features."""

    learning_rate: float = 3e-4
    """The paper's is 3e-5, for heads of a billion-parameter model; ours are smaller."""
    betas: tuple[float, float] = (0.9, 0.95)
    clip: float = 0.5
    regression: float = 1.0
    prediction: float = 0.1
    noise: float = 0.2
    """Of uniform noise (u - 1/2) * noise * 512 / length on the features that are read."""
    sampling: bool = True
    partial: bool = True


@torch.no_grad()
def target_features(model: PreTrainedModel, tokens: Tensor) -> Tensor:
    """[B, T, F]: the hidden states that the target's logits are made of."""
    found: Tensor = model.base_model(input_ids=tokens)[0]
    return found


def head_losses(
    head: FeatureHead, tokens: Tensor, features: Tensor, *, noise: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Smooth L1 to the target's features, and cross-entropy to its distribution, each a mean.

    tokens [B, T], features [B, T, F]: pair t reads token t + 1 and feature t, for feature t + 1.
    """
    read, want = features[:, :-1], features[:, 1:]
    if noise:
        read = read + (torch.rand_like(read) - 0.5) * (noise * 512 / tokens.shape[1])
    positions = torch.arange(tokens.shape[1] - 1, device=tokens.device).expand(len(tokens), -1)
    predicting, regressing = head(tokens[:, 1:], read, positions)
    said = nnf.log_softmax(head.output(predicting), -1)
    wanted = nnf.softmax(head.output(want), -1)
    return nnf.smooth_l1_loss(regressing, want), -(wanted * said).sum(-1).mean()


def train_head(
    model: PreTrainedModel,
    batches: Iterable[Tensor],
    settings: HeadTraining | None = None,
) -> tuple[FeatureHead, list[tuple[float, float]]]:
    """A head for `model` from batches of tokens [B, T], and the two losses at each step."""
    settings = settings or HeadTraining()
    model = model.train(False)
    size = HeadSize.of(model, sampling=settings.sampling, partial=settings.partial)
    head = FeatureHead(model, size).to(model.device)
    optimiser = torch.optim.AdamW(head.trainable(), lr=settings.learning_rate, betas=settings.betas)
    losses = list(_steps(model, head, optimiser, batches, settings))
    return head.eval(), losses


def _steps(
    model: PreTrainedModel,
    head: FeatureHead,
    optimiser: torch.optim.Optimizer,
    batches: Iterable[Tensor],
    settings: HeadTraining,
) -> Iterator[tuple[float, float]]:
    for tokens in batches:
        features = target_features(model, tokens)
        regression, prediction = head_losses(head, tokens, features, noise=settings.noise)
        optimiser.zero_grad()
        (settings.regression * regression + settings.prediction * prediction).backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(head.trainable(), settings.clip)
        optimiser.step()
        yield regression.item(), prediction.item()


def compile_head(head: FeatureHead, *, target: str, output: str | Path, **options: Any) -> Artifact:
    """The head as an artifact for a `FeatureDrafter`; `options` are those of `sdk.compile`."""
    example = _example(head)
    return sdk.compile(
        HeadStep(head),
        inputs=example,
        dynamic=_dynamic(head.size.context),
        target=target,
        output=output,
        **options,
    )


def _example(head: FeatureHead) -> dict[str, Any]:
    """One pair behind a past of its own making."""
    size = head.size
    read, room = min(READ, size.context - 1), min(ROOM, size.context)
    rng, depth = np.random.default_rng(0), size.width // size.heads
    vocabulary = len(next(head.embedding.parameters()))
    past = rng.normal(size=(2, size.groups, room, depth)).astype(np.float32)
    past[:, :, read:] = 0
    return {
        "tokens": rng.integers(0, vocabulary, (1, 1)),
        FROM: rng.normal(size=(1, 1, size.width)).astype(np.float32),
        "positions": np.array([[read]]),
        "rows": np.zeros(1, np.int64),
        "past_mask": (np.arange(room) < read)[None],
        "new_mask": np.ones((1, 1), bool),
        "past_keys_0": past[0],
        "past_values_0": past[1],
    }


def _dynamic(context: int) -> Proposed:
    width, rows = Dim("width", 1, 1, context), Dim("rows", 1, 1, context)
    past = Dim("past", min(LEAST_PAST, context), min(ROOM, context), context)
    return Proposed(
        {
            **{name: {1: width} for name in ("tokens", FROM, "positions")},
            "rows": {0: rows},
            "past_mask": {0: width, 1: past},
            "new_mask": {0: width, 1: width},
            **{f"past_{what}_0": {1: past} for what in ("keys", "values")},
        }
    )
