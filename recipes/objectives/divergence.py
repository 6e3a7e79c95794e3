"""Divergences between the class distributions of a student and a teacher.

All take logits of N x classes and return the mean over N, in nats. `p` is the student's softmax and
`q` the teacher's, at temperature 1. No label enters.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as nnf
from torch import Tensor

Divergence = Callable[[Tensor, Tensor], Tensor]


def jensen_shannon(student: Tensor, teacher: Tensor) -> Tensor:
    """SSLD's loss (Cui et al., 2021, arXiv 2103.05959): JS(p, q) = (KL(p|m) + KL(q|m)) / 2 with
    m = (p + q) / 2. Symmetric, at most ln 2. Near p = q its curvature is a quarter of KL's.
    """
    log_p, log_q = nnf.log_softmax(student, -1), nnf.log_softmax(teacher, -1)
    log_m = torch.logaddexp(log_p, log_q) - math.log(2)
    return (_kl(log_p, log_m) + _kl(log_q, log_m)) / 2


def kl(student: Tensor, teacher: Tensor) -> Tensor:
    """KL(q | p), the loss of Hinton et al. (2015, arXiv 1503.02531) at temperature 1."""
    return _kl(nnf.log_softmax(teacher, -1), nnf.log_softmax(student, -1))


def symmetric_kl(student: Tensor, teacher: Tensor) -> Tensor:
    """(KL(q | p) + KL(p | q)) / 2."""
    return (kl(student, teacher) + kl(teacher, student)) / 2


def cross_entropy(student: Tensor, labels: Tensor, _inputs: Tensor) -> Tensor:
    """-log p[label], as an objective of the training loop: what the baselines learn from."""
    return nnf.cross_entropy(student, labels)


def _kl(log_a: Tensor, log_b: Tensor) -> Tensor:
    """KL(a | b) from log-probabilities."""
    return nnf.kl_div(log_b, log_a, reduction="batchmean", log_target=True)


DIVERGENCES: dict[str, Divergence] = {
    "js": jensen_shannon,
    "kl": kl,
    "symmetric_kl": symmetric_kl,
}
