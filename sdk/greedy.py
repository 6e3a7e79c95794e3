"""The gate of language models: does the engine generate what transformers generates?"""

from __future__ import annotations

from collections.abc import Mapping

from sdk.errors import ParityError
from sdk.language import Continuation
from sdk.manifest import Greedy
from sdk.runtimes.generation.cached import Cached
from sdk.runtimes.generation.config import GenerationConfig
from sdk.runtimes.generation.in_place import decoder
from sdk.runtimes.generation.loop import Generation
from sdk.runtimes.session import Session
from sdk.signature import Array

TIE = 1e-3
"""Below this share of the logits' spread two tokens are as good as equal for float32 sums."""


def gate_greedy(
    session: Session,
    wanted: Continuation,
    *,
    strict: bool,
    source: Mapping[str, Array] | None = None,
    eos: tuple[int, ...] = (),
) -> Greedy:
    """Generate as many tokens after the same prompt, and behind the same source if there is one.

    `strict` raises ParityError where they leave those of transformers at anything but a tie: lower
    precisions may, since their weights are others. Tokens of `eos` are left out, as there.
    """
    count = len(wanted.tokens)
    settings = GenerationConfig(max_new_tokens=count, min_new_tokens=count, eos=eos)
    cached = Cached(decoder(session))
    if source is not None:
        cached.read(source)
    found = [token.id for token in Generation(cached, wanted.prompt, settings)]
    pairs = zip(found, wanted.tokens, strict=True)
    equal = next((i for i, (got, want) in enumerate(pairs) if got != want), len(found))
    if equal == len(found):
        return Greedy(equal, equal)
    margin = wanted.margins[equal]
    if strict and margin > TIE:
        raise ParityError(
            f"The engine generates other tokens than transformers, from the {equal + 1}th on.",
            expected=f"token {wanted.tokens[equal]}, ahead by {margin:.2g} of the logits' spread",
            got=f"token {found[equal]}",
        )
    return Greedy(equal, len(found), margin)
