"""OSD (arXiv:2310.07177): a draft model that learns from what the target made of its guesses.

The pass that verifies a draft has the target's distributions already. Those at the places where the
draft was wrong are kept, and between requests the draft takes one step towards them. Its weights
change, what it is asked for does not: the verifier holds every output to the target's law.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from sdk.errors import InputError
from sdk.recipes.drafts.live import LiveSession
from sdk.runtimes.generation.contracts import IID, ROOT, DraftTree, Outcome, Request, Row
from sdk.runtimes.generation.model_drafter import ModelDrafter
from sdk.runtimes.generation.sessions import StepSession

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def forward_kl(p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p || q) by row, up to the entropy of p, which has no gradient: the paper's default."""
    return -(p * log_q).sum(-1)


def reverse_kl(p: Tensor, log_q: Tensor) -> Tensor:
    """KL(q || p) by row."""
    return (log_q.exp() * (log_q - p.clamp_min(1e-9).log())).sum(-1)


def jensen_shannon(p: Tensor, log_q: Tensor) -> Tensor:
    """Half of both divergences from the mean, by row."""
    q = log_q.exp()
    log_mean = (0.5 * (p + q)).clamp_min(1e-9).log()
    return 0.5 * (p * (p.clamp_min(1e-9).log() - log_mean) + q * (log_q - log_mean)).sum(-1)


DIVERGENCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "forward": forward_kl,
    "reverse": reverse_kl,
    "jensen_shannon": jensen_shannon,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class OnlineConfig:
    """The paper's: a step of AdamW at a constant rate each 8 requests."""

    interval: int = 8
    learning_rate: float = 1e-4
    divergence: str = "forward"
    longest: int = 256
    """Tokens of a request, its last ones, that a step reads."""

    def __post_init__(self) -> None:
        if self.divergence not in DIVERGENCES or self.interval < 1 or self.longest < 2:
            raise InputError(
                "Learning online is out of range.",
                expected=f"a divergence of {', '.join(DIVERGENCES)}, interval 1 or more, longest "
                "2 or more",
                got=self,
            )


@dataclass(slots=True)
class Lesson:
    """One request: its tokens, and the target's distribution behind some of them."""

    tokens: list[int] = field(default_factory=list)
    wrong: list[tuple[int, Row]] = field(default_factory=list)
    """(place, p): p is of the token behind tokens[place]."""


class OnlineDrafter(ModelDrafter):
    """A `ModelDrafter` with live weights, for a device that has PyTorch.

    `model` is trained in place, when a request begins: never while one runs. `losses` has one entry
    a step. `learning` switches it off and on.
    """

    ahead = False  # it must know what the target has read

    def __init__(
        self,
        model: PreTrainedModel,
        settings: OnlineConfig | None = None,
        *,
        sampling: str = IID,
        confidence_threshold: float = 0.0,
    ) -> None:
        self.model, self.settings = model.train(False), settings or OnlineConfig()
        super().__init__(
            StepSession(LiveSession.of(model)),
            sampling=sampling,
            confidence_threshold=confidence_threshold,
        )
        self.learning, self.losses = True, list[float]()
        self._lessons: list[Lesson] = []
        self._current = Lesson()
        rate = self.settings.learning_rate
        self._optimiser = torch.optim.AdamW(model.parameters(), lr=rate)

    def begin(self, request: Request) -> None:
        """Learn from the requests before, if there were enough of them."""
        self._finish()
        if len(self._lessons) >= self.settings.interval:
            self.update()
        self._current = Lesson(list(request.prompt))
        super().begin(request)

    def propose(self, context: Sequence[int], budget: int) -> DraftTree:
        """As a model does."""
        self._current.tokens = list(context)
        return super().propose(context, budget)

    def observe(self, outcome: Outcome) -> None:
        """Keep the target's distribution where it did not take the draft's guess."""
        super().observe(outcome)
        path, current = outcome.verdict.path, self._current
        if outcome.tree and not outcome.verdict.bonus:
            place = len(current.tokens) - 1 + len(path)
            p = outcome.target.likely(path[-1] if path else ROOT)
            current.wrong.append((place, p.astype(np.float32)))
        current.tokens += outcome.committed

    def update(self) -> None:
        """One step towards the target at all places that were kept; the cache is of old weights."""
        self._finish()
        lessons, self._lessons = self._lessons, []
        if not self.learning or not lessons:
            return
        self._optimiser.zero_grad()
        count, total = sum(len(lesson.wrong) for lesson in lessons), 0.0
        divergence = DIVERGENCES[self.settings.divergence]
        for lesson in lessons:
            first = max(0, len(lesson.tokens) - self.settings.longest)
            wrong = [(place - first, p) for place, p in lesson.wrong if place >= first]
            if not wrong:
                continue
            ids = torch.tensor([lesson.tokens[first:]], device=self.model.device)
            logits = self.model(input_ids=ids).logits[0, [place for place, _ in wrong]]
            p = torch.from_numpy(np.stack([p for _, p in wrong])).to(logits.device)
            loss = divergence(p, logits.log_softmax(-1)).sum() / count
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self._optimiser.step()
        self.losses.append(total)
        self.cached.rollback(0)

    def _finish(self) -> None:
        """Put the request that has ended to the lessons."""
        if self._current.wrong:
            self._lessons.append(self._current)
        self._current = Lesson()
