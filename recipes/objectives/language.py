"""Objectives of language models: the next token, and a larger model's law of it."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

Objective = Callable[[Tensor, Tensor, Tensor], Tensor]


def next_token(logits: Tensor, targets: Tensor, _inputs: Tensor) -> Tensor:
    """Mean of -log p[target] in nats; logits [B, T, V], targets [B, T]."""
    return nnf.cross_entropy(logits.flatten(0, 1), targets.flatten())


def distilled(teacher: nn.Module, share: float) -> Objective:
    """share * KL(teacher, student) + (1 - share) * -log p[target], on given texts.

    Knowledge distillation (Hinton et al., arXiv 1503.02531) at temperature 1, which is "supervised
    KD" in DistillSpec (Zhou et al., arXiv 2310.08461, section 3.2): a draft is accepted the more,
    the nearer its law is to the target's.
    """

    def objective(logits: Tensor, targets: Tensor, inputs: Tensor) -> Tensor:
        with torch.no_grad():
            wanted = torch.log_softmax(teacher(inputs).flatten(0, 1), -1)
        own = torch.log_softmax(logits.flatten(0, 1), -1)
        divergence = nnf.kl_div(own, wanted, log_target=True, reduction="batchmean")
        return share * divergence + (1 - share) * nnf.nll_loss(own, targets.flatten())

    return objective
