"""LUD (arXiv:2405.15208): find the units that a model is sure of, and train it to say them at once.

A unit is a run of tokens that the model itself, read with the text, is sure of. Behind a beginning
of the text stand placeholders in the place of the unit's other tokens, and the model learns to say
at each placeholder the token after it. Ordinary language modelling is mixed in.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as nnf
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedModel

IGNORED = -100


@torch.no_grad()
def unit_lengths(
    model: PreTrainedModel, tokens: Tensor, *, sure: float = 0.5, longest: int = 4
) -> Tensor:
    """[B, T]: how many tokens the unit has that begins behind each token of `tokens` [B, T].

    A unit's first token may be any; each further one is in it while the model gives it `sure` or
    more, up to `longest` tokens. 0 behind the last token.
    """
    rows = model(input_ids=tokens).logits.softmax(-1)
    given = rows[:, :-1].gather(2, tokens[:, 1:, None])[..., 0]
    likely = given >= sure  # [B, T - 1]: of the token behind each
    count, length = tokens.shape
    lengths = torch.zeros(count, length + 1, dtype=torch.long, device=tokens.device)
    for t in range(length - 2, -1, -1):
        joined = torch.zeros_like(lengths[:, 0])
        if t + 1 <= length - 2:
            joined = lengths[:, t + 1] * likely[:, t + 1]
        lengths[:, t] = (1 + joined).clamp(max=longest)
    return lengths[:, :-1]


def unit_batch(
    tokens: Tensor, lengths: Tensor, cuts: Tensor, *, placeholder: int, span: int
) -> tuple[Tensor, Tensor]:
    """Beginnings cut at `cuts` [B] with `span` placeholders behind them, and labels [B, T + span].

    The label at a text's last token is the unit's first token and that at placeholder j its j-th
    after it; behind the unit, and before the cut, there is none.
    """
    count, length = tokens.shape
    given = torch.full((count, length + span), placeholder, device=tokens.device)
    labels = torch.full_like(given, IGNORED)
    for row in range(count):
        cut = int(cuts[row])
        given[row, : cut + 1] = tokens[row, : cut + 1]
        unit = min(int(lengths[row, cut]), span + 1)
        labels[row, cut : cut + unit] = tokens[row, cut + 1 : cut + 1 + unit]
    return given, labels


def unit_loss(model: PreTrainedModel, given: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy at the last tokens and the placeholders of `unit_batch`."""
    logits = model(input_ids=given).logits
    return nnf.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED)


def train_units(
    model: PreTrainedModel,
    batches: Iterable[Tensor],
    *,
    placeholder: int,
    span: int = 3,
    sure: float = 0.5,
    learning_rate: float = 1e-4,
    seed: int = 0,
) -> list[tuple[float, float]]:
    """Train `model` in place; by step the losses of language modelling and of units.

    Each text of a batch [B, T] is cut at one random place.
    """
    random = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.AdamW(model.parameters(), lr=learning_rate)
    history: list[tuple[float, float]] = []
    for tokens in batches:
        lengths = unit_lengths(model.train(False), tokens, sure=sure, longest=span + 1)
        cuts = torch.randint(0, tokens.shape[1] - 1, (len(tokens),), generator=random)
        given, labels = unit_batch(tokens, lengths, cuts, placeholder=placeholder, span=span)
        model.train()
        logits = model(input_ids=tokens[:, :-1]).logits
        plain = nnf.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
        units = unit_loss(model, given, labels)
        optimiser.zero_grad()
        (plain + units).backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        history.append((plain.item(), units.item()))
    model.train(False)
    return history
