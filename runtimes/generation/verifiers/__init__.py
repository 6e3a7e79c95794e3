"""Which drafted tokens to accept. One verifier per file; the file name is the registry.

All are exact in law for what they accept; they differ in how much of it they accept.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import cast

from sdk.errors import InputError
from sdk.runtimes.generation.contracts import (
    DETERMINISTIC,
    GREEDY,
    IID,
    WITHOUT_REPLACEMENT,
    Verifier,
)

NAMES = tuple(sorted(path.stem for path in Path(__file__).parent.glob("[a-z]*.py")))

_FOR_TREES = {
    DETERMINISTIC: "sample_match",
    IID: "k_seq",
    WITHOUT_REPLACEMENT: "rrs_without_replacement",
    GREEDY: "greedy_draft",
}


def named(name: str) -> Verifier:
    """The verifier of the file `name`."""
    if name not in NAMES:
        raise InputError(
            f"There is no verifier {name!r}.", expected=f"one of {', '.join(NAMES)}", got=name
        )
    module = importlib.import_module(f"{__name__}.{name}")
    return cast(Verifier, module.VERIFIER())


def choose(sampling: str, *, greedy: bool, chain: bool = True) -> Verifier:
    """The exact verifier that accepts most, for drafts whose siblings are drawn by `sampling`."""
    if greedy:
        return named("greedy_match")
    if chain and sampling != DETERMINISTIC:
        return named("speculative_sampling")
    return named(_FOR_TREES[sampling])


def check_pair(sampling: str, verifier: Verifier, *, greedy: bool) -> None:
    """InputError unless `verifier` is exact for such drafts and such a request."""
    if sampling not in verifier.accepts:
        raise InputError(
            f"{type(verifier).__name__} is not exact for drafts sampled {sampling!r}.",
            expected=f"drafts sampled {' or '.join(map(repr, sorted(verifier.accepts)))}",
            got=repr(sampling),
            fix="leave the verifier out, and the one that fits is taken",
        )
    if getattr(verifier, "greedy_only", False) and not greedy:
        raise InputError(
            f"{type(verifier).__name__} compares with the most probable token.",
            expected="temperature 0",
            got="a temperature above 0",
            fix="leave the verifier out, and the one that fits is taken",
        )
