"""RASD (arXiv:2503.03434): a draft model's tree fused with what is retrieved, against its parts.

    python tests/bench/speculation/rasd.py --target FOLDER --draft FOLDER --prompts FOLDER

Mean accepted tokens at one node budget: prompt lookup and a datastore of the standard library
(`--stored` tokens), the draft model's tree, and all fused.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pair import Tally, corpus, loaded, parser, prompts, tell

from sdk.model import Model
from sdk.runtimes.generation.contracts import Drafter
from sdk.runtimes.generation.datastore import Datastore
from sdk.runtimes.generation.drafters.fused import FusedDrafter
from sdk.runtimes.generation.drafters.prompt_lookup import PromptLookupDrafter
from sdk.runtimes.generation.drafters.retrieval import RetrievalDrafter
from sdk.runtimes.generation.model_drafter import ModelDrafter


def drafters(draft: Model, store: Datastore) -> dict[str, Callable[[], Drafter]]:
    """Fresh ones, so that none knows the last set."""

    def model() -> Drafter:
        session = draft.language.cached.session.fork()
        session.rollback(0)
        return ModelDrafter(session, sampling="deterministic", branching_factor=2)

    def retrieved() -> Drafter:
        return FusedDrafter(RetrievalDrafter(store), PromptLookupDrafter())

    return {
        "retrieved": retrieved,
        "model": model,
        "fused": lambda: FusedDrafter(model(), RetrievalDrafter(store), PromptLookupDrafter()),
    }


def rows(target: Model, draft: Model, options: Any) -> Iterator[dict[str, Any]]:
    """One for each set of prompts."""
    with tempfile.TemporaryDirectory() as scratch:
        texts = corpus(target, options.stored)
        vocabulary = target.language.cached.session.vocabulary
        store = Datastore.build(texts, vocabulary, Path(scratch) / "store")
        for kind in options.kinds:
            asked = prompts(target, options, kind)
            plain = [target.generate(p, max_new_tokens=options.tokens).tokens for p in asked]
            row: dict[str, Any] = {"prompts": kind, "requests": len(asked)}
            tallies = {}
            for name, make in drafters(draft, store).items():
                drafter, tally = make(), Tally()
                for prompt, want in zip(asked, plain, strict=True):
                    result = target.generate(
                        prompt, max_new_tokens=options.tokens, drafter=drafter,
                        num_draft_tokens=options.budget,
                    )  # fmt: skip
                    assert tally.add(result).tokens == want, "a draft changed the output"
                tallies[name] = tally
                row[name] = tally.accepted
            best = max(("retrieved", "model"), key=lambda name: row[name])
            yield row | {
                "fused - best": row["fused"] - row[best], "standard error": tallies[best].error,
            }  # fmt: skip


def main() -> None:
    """Print the table."""
    options_ = parser(__doc__, requests=24)
    options_.add_argument("--kinds", nargs="+", default=["completion", "edit"])
    options_.add_argument("--stored", type=int, default=500_000)
    options_.add_argument("--budget", type=int, default=8)
    options = options_.parse_args()
    tell(rows(loaded(options.target, options), loaded(options.draft, options), options), options)


if __name__ == "__main__":
    main()
