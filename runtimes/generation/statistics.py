"""What a request did, by the names of the field: vLLM's, OpenVINO GenAI's, ONNX Runtime GenAI's."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from sdk.runtimes.generation.contracts import Outcome


@dataclass(slots=True)
class Statistics:
    """Counted while it runs; times are in milliseconds and leave out the caller's own."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    """Of the prompt, those that the cache had already."""
    new_tokens: int = 0
    num_rounds: int = 0
    num_drafts: int = 0
    """Rounds with a draft that was not empty."""
    rounds_off: int = 0
    """Rounds in which the budget allowed no draft."""
    rounds_without_guess: int = 0
    """Rounds in which the drafter had nothing to say."""
    predicted_speedup: float | None = None
    """The budget's last prediction."""
    draft_tokens_proposed: int = 0
    draft_tokens_evaluated: int = 0
    draft_tokens_accepted: int = 0
    bonus_tokens: int = 0
    correction_tokens: int = 0
    target_forward_passes: int = 0
    """Without those that read the prompt."""
    draft_forward_passes: int = 0
    accepted_per_position: list[int] = field(default_factory=list)
    """How many drafts were accepted at least to each depth, from 1."""
    prefill_ms: float = 0.0
    ttft_ms: float = 0.0
    """From the start to the first token."""
    draft_ms: float = 0.0
    verify_ms: float = 0.0
    """In the target's forward passes, without the prompt's."""
    plain_ms: float = 0.0
    """Of `verify_ms`, the part of rounds without a draft."""
    total_ms: float = 0.0

    def count(self, outcome: Outcome) -> None:
        """Add a round."""
        accepted = len(outcome.verdict.path)
        self.num_rounds += 1
        self.target_forward_passes += 1
        self.draft_ms += outcome.draft_ms
        self.verify_ms += outcome.verify_ms
        if not outcome.tree:
            self.plain_ms += outcome.verify_ms
            return
        self.num_drafts += 1
        self.draft_tokens_proposed += len(outcome.tree)
        self.draft_tokens_evaluated += outcome.verdict.evaluated
        self.draft_tokens_accepted += accepted
        self.bonus_tokens += outcome.verdict.bonus
        self.correction_tokens += not outcome.verdict.bonus
        self.accepted_per_position += [0] * (accepted - len(self.accepted_per_position))
        for depth in range(accepted):
            self.accepted_per_position[depth] += 1

    @property
    def acceptance_rate(self) -> float:
        """Accepted of the proposed draft tokens."""
        return _share(self.draft_tokens_accepted, self.draft_tokens_proposed)

    @property
    def conditional_acceptance_rate(self) -> float:
        """Accepted of the draft tokens that were looked at."""
        return _share(self.draft_tokens_accepted, self.draft_tokens_evaluated)

    @property
    def acceptance_rate_per_position(self) -> list[float]:
        """Share of the drafts that were accepted at least to each depth, from 1."""
        return [_share(count, self.num_drafts) for count in self.accepted_per_position]

    @property
    def mean_accepted_tokens(self) -> float:
        """New tokens per forward pass of the target: 1 for plain decoding."""
        return _share(self.new_tokens, self.target_forward_passes)

    @property
    def tpot_ms(self) -> float:
        """Time per output token after the first."""
        return _share(self.total_ms - self.ttft_ms, self.new_tokens - 1)

    @property
    def tokens_per_second(self) -> float:
        """New tokens over the whole time."""
        return _share(1000 * self.new_tokens, self.total_ms)

    @property
    def speedup(self) -> float:
        """Against this request's own rounds without a draft; 0 where there were none."""
        plain = _share(self.plain_ms, self.num_rounds - self.num_drafts)
        return _share(self.new_tokens * plain, self.total_ms - self.prefill_ms)

    @property
    def overhead_ms(self) -> float:
        """The SDK's own part per round: neither the target's nor the drafter's."""
        spent = self.total_ms - self.prefill_ms - self.draft_ms - self.verify_ms
        return _share(spent, self.num_rounds)

    def to_dict(self) -> dict[str, Any]:
        """Counters, times and rates, for a report."""
        counted = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return counted | {name: getattr(self, name) for name in RATES}


RATES = (
    "acceptance_rate",
    "conditional_acceptance_rate",
    "acceptance_rate_per_position",
    "mean_accepted_tokens",
    "tpot_ms",
    "tokens_per_second",
    "speedup",
    "overhead_ms",
)


def _share(part: float, whole: float) -> float:
    return part / whole if whole > 0 else 0.0
