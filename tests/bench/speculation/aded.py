"""ADED (arXiv:2407.12021): a trigram table that learns over a stream of requests.

    python tests/bench/speculation/aded.py --target FOLDER --prompts FOLDER

The table begins empty, or counted from the standard library (`--counted N` tokens). Mean accepted
tokens by quarter of the stream, with learning and without; outputs are compared with plain ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from pair import Tally, corpus, loaded, parser, prompts, tell

from sdk.model import Model
from sdk.runtimes.generation.drafters.trigram import TrigramDrafter
from sdk.runtimes.generation.trigram_table import TrigramTable


def rows(model: Model, options: Any) -> Iterator[dict[str, Any]]:
    """One for each table."""
    vocabulary = model.language.cached.session.vocabulary
    stream = [prompt for kind in options.kinds for prompt in prompts(model, options, kind)]
    plain = [model.generate(prompt, max_new_tokens=options.tokens).tokens for prompt in stream]
    for begin, adapt in (("empty", True), ("counted", False), ("counted", True)):
        texts = corpus(model, options.counted) if begin == "counted" else ()
        table = TrigramTable.count(texts, vocabulary) if texts else TrigramTable(vocabulary)
        drafter = TrigramDrafter(table, adapt=adapt)
        quarters = [Tally() for _ in range(4)]
        for index, (prompt, want) in enumerate(zip(stream, plain, strict=True)):
            result = model.generate(
                prompt, max_new_tokens=options.tokens, drafter=drafter,
                num_draft_tokens=options.budget,
            )  # fmt: skip
            assert result.tokens == want, "a draft changed the output"
            quarters[4 * index // len(stream)].add(result)
        taken = [quarter.accepted for quarter in quarters]
        yield (
            {"table": begin, "learns": str(adapt), "requests": len(stream)}
            | {f"quarter {i + 1}": value for i, value in enumerate(taken)}
            | {"second half - first": float(np.mean(taken[2:]) - np.mean(taken[:2]))}
        )


def main() -> None:
    """Print the table."""
    options_ = parser(__doc__, requests=24)
    options_.add_argument("--kinds", nargs="+", default=["completion"])
    options_.add_argument("--counted", type=int, default=300_000)
    options_.add_argument("--budget", type=int, default=8)
    options = options_.parse_args()
    tell(rows(loaded(options.target, options), options), options)


if __name__ == "__main__":
    main()
