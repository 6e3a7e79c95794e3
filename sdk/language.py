"""What the artifact of a language model says of itself beside its manifest: `language.json`."""

from __future__ import annotations

import json
from dataclasses import dataclass, field

from sdk.structure import from_json, parse, to_json

LANGUAGE, TOKENIZER, TEMPLATE = "language.json", "tokenizer.json", "chat_template.jinja"


@dataclass(frozen=True, slots=True)
class Continuation:
    """What transformers generates greedily after a prompt, with the original weights in float32."""

    prompt: tuple[int, ...]
    tokens: tuple[int, ...]
    margins: tuple[float, ...]
    """By how much each token's logit beats the next one's, over the spread of the logits."""
    source: tuple[int, ...] = ()
    """What an encoder read before."""


@dataclass(frozen=True, slots=True)
class Language:
    """Tokens that end an output, texts of special tokens by role, and a golden continuation."""

    eos: tuple[int, ...]
    continuation: Continuation
    marks: dict[str, str] = field(default_factory=dict)
    """For the chat template: `bos_token`, `eos_token` and their like."""
    start: int | None = None
    """Of a model with an encoder: the token that each output begins behind."""

    def dumps(self) -> bytes:
        """As UTF-8 JSON."""
        return json.dumps(to_json(self), ensure_ascii=False).encode()


def loads(text: bytes) -> Language:
    """Parse `language.json`; an ArtifactError says what is wrong with it."""
    return from_json(Language, parse(text, "language"), "language")
