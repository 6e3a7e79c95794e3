"""The divergences against closed forms and against what is known of them."""

from __future__ import annotations

import math

import pytest
import torch

from sdk.recipes.objectives.divergence import DIVERGENCES, jensen_shannon, kl, symmetric_kl


def random_logits(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(3 * torch.randn(2, 16, 7, generator=generator, dtype=torch.float64))


@pytest.mark.parametrize("name", DIVERGENCES)
def test_is_zero_where_the_distributions_agree_and_positive_elsewhere(name: str) -> None:
    student, teacher = random_logits(0)
    divergence = DIVERGENCES[name]
    assert divergence(student, student + 5.0).item() == pytest.approx(0, abs=1e-12)
    assert divergence(student, teacher).item() > 0.1


def test_jensen_shannon_is_symmetric_and_at_most_ln_2() -> None:
    student, teacher = random_logits(1)
    forward, backward = jensen_shannon(student, teacher), jensen_shannon(teacher, student)
    torch.testing.assert_close(forward, backward)
    apart = torch.tensor([[40.0, 0.0]], dtype=torch.float64)
    assert jensen_shannon(apart, apart.flip(1)).item() == pytest.approx(math.log(2))


def test_jensen_shannon_is_its_definition() -> None:
    student, teacher = random_logits(2)
    p, q = student.softmax(1), teacher.softmax(1)
    m = (p + q) / 2
    want = ((p * (p / m).log()).sum(1) + (q * (q / m).log()).sum(1)).mean() / 2
    torch.testing.assert_close(jensen_shannon(student, teacher), want)


def test_kl_is_its_definition() -> None:
    student, teacher = random_logits(3)
    p, q = student.softmax(1), teacher.softmax(1)
    torch.testing.assert_close(kl(student, teacher), (q * (q / p).log()).sum(1).mean())
    both = ((q * (q / p).log()).sum(1) + (p * (p / q).log()).sum(1)).mean() / 2
    torch.testing.assert_close(symmetric_kl(student, teacher), both)


def test_near_agreement_kl_curves_four_times_as_much_as_jensen_shannon() -> None:
    teacher = random_logits(4)[1]
    student = teacher + 1e-3 * random_logits(5)[0]
    assert (kl(student, teacher) / jensen_shannon(student, teacher)).item() == pytest.approx(
        4, rel=1e-2
    )


@pytest.mark.parametrize("name", DIVERGENCES)
def test_gradients_are_those_of_finite_differences(name: str) -> None:
    student, teacher = random_logits(6)
    student = student[:3].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda s: DIVERGENCES[name](s, teacher[:3]), student)
