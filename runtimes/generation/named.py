"""Drafters by name: those that need nothing but the request."""

from __future__ import annotations

from collections.abc import Callable

from sdk.errors import InputError
from sdk.runtimes.generation.contracts import Drafter
from sdk.runtimes.generation.drafters.fused import FusedDrafter
from sdk.runtimes.generation.drafters.prompt_lookup import PromptLookupDrafter
from sdk.runtimes.generation.drafters.source_lookup import SourceLookupDrafter
from sdk.runtimes.generation.drafters.trigram import TrigramDrafter
from sdk.runtimes.generation.trigram_table import TrigramTable


def named(name: str, vocabulary: int) -> Drafter:
    """A drafter by name, of those that need nothing but the prompt, with its own settings."""
    if name not in NAMED:
        raise InputError(
            f"There is no drafter {name!r}.",
            expected=f"{' or '.join(NAMED)}, a drafter, or a loaded model",
            got=name,
        )
    return NAMED[name](vocabulary)


NAMED: dict[str, Callable[[int], Drafter]] = {
    "prompt_lookup": lambda _: PromptLookupDrafter(),
    "source_lookup": lambda _: SourceLookupDrafter(),
    "fused": lambda vocabulary: FusedDrafter(
        TrigramDrafter(TrigramTable(vocabulary)), PromptLookupDrafter()
    ),
    "trigram": lambda vocabulary: TrigramDrafter(TrigramTable(vocabulary)),
}
