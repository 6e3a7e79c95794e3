"""The settings of a request, by the names that Hugging Face gives them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from sdk.errors import InputError


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationConfig:
    """What to generate. Checked when it is made; InputError names the setting."""

    max_new_tokens: int = 128
    min_new_tokens: int = 0
    """End-of-sequence tokens are banned before it."""
    temperature: float = 0.0
    """0 takes the most probable token."""
    top_k: int = 0
    """Only tokens as probable as the k-th; 0 for all."""
    top_p: float = 1.0
    """Only the fewest most probable tokens that hold this much."""
    min_p: float = 0.0
    """Only tokens at least this fraction as probable as the most probable."""
    repetition_penalty: float = 1.0
    """Divides the positive and multiplies the negative logits of tokens in prompt and output."""
    presence_penalty: float = 0.0
    """Subtracted from the logits of tokens in the output."""
    eos: tuple[int, ...] = ()
    """End-of-sequence tokens; the one that ends the output is part of it."""
    stop_tokens: tuple[int, ...] = ()
    """More tokens that end the output; they are not banned by `min_new_tokens`."""
    seed: int = 0
    logprobs: bool = False
    """Report each token's log-probability under the model, before any transform."""

    def __post_init__(self) -> None:
        for name, (fits, expected) in _BOUNDS.items():
            value = getattr(self, name)
            if not fits(value):
                raise InputError(f"{name} is out of range.", expected=expected, got=value)
        if self.min_new_tokens > self.max_new_tokens:
            raise InputError(
                "min_new_tokens is above max_new_tokens.",
                expected=f"at most {self.max_new_tokens}",
                got=self.min_new_tokens,
            )

    @property
    def greedy(self) -> bool:
        """Whether the most probable token is taken."""
        return self.temperature == 0.0


_BOUNDS: dict[str, tuple[Callable[[float], bool], str]] = {
    "max_new_tokens": (lambda n: n >= 0, "0 or more"),
    "min_new_tokens": (lambda n: n >= 0, "0 or more"),
    "temperature": (lambda t: 0 <= t < math.inf, "0 or more, and finite"),
    "top_k": (lambda k: k >= 0, "0 (all) or more"),
    "top_p": (lambda p: 0 < p <= 1, "above 0, at most 1"),
    "min_p": (lambda p: 0 <= p <= 1, "from 0 to 1"),
    "repetition_penalty": (lambda r: 0 < r < math.inf, "above 0, and finite"),
    "presence_penalty": (math.isfinite, "a finite number"),
}
