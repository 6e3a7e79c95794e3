"""PEARL (arXiv:2408.11850): draft and target side by side against one after the other.

    python tests/bench/speculation/pearl.py --target FOLDER --draft FOLDER --prompts FOLDER

`run` is the paper's accepted length: guesses taken between two corrections. The milliseconds are of
this machine's cores: side by side takes two of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from pair import Tally, loaded, parser, prompts, tell

from sdk.generating import Options
from sdk.model import Model


def runs(
    target: Model, prompt: list[int], options: Any, parts: dict[str, Any]
) -> tuple[Any, list[int]]:
    """The finished stream, and how many guesses were taken before each correction."""
    settings = {"max_new_tokens": options.tokens, "temperature": options.temperature}
    stream = target.language.start(prompt, Options(**parts), settings)  # type: ignore[arg-type]
    found, run = [], 0
    for token in stream._made:
        if token.from_draft:
            run += 1
        else:
            found.append(run)
            run = 0
    return stream, [*found, run]


def rows(target: Model, draft: Model, options: Any) -> Iterator[dict[str, Any]]:
    """One for each schedule and length of drafts; requests alternate between the schedules."""
    asked = prompts(target, options, options.kind)
    for budget in options.budgets:
        tallies = {"serial": Tally(), "parallel": Tally()}
        lengths: dict[str, list[int]] = {"serial": [], "parallel": []}
        for prompt in asked:
            outputs = {}
            for schedule, tally in tallies.items():
                parts = {"drafter": draft, "schedule": schedule, "num_draft_tokens": budget}
                stream, found = runs(target, prompt, options, parts)
                tally.results.append(stream._made.statistics)
                lengths[schedule] += found
                outputs[schedule] = stream._made.tokens
            assert options.temperature or outputs["serial"] == outputs["parallel"]
        for schedule, tally in tallies.items():
            yield {
                "draft tokens": budget, "schedule": schedule,
                "run": float(np.mean(lengths[schedule])), "tokens a pass": tally.accepted,
                "ms a token": tally.milliseconds,
            }  # fmt: skip


def main() -> None:
    """Print the table."""
    options_ = parser(__doc__, requests=16)
    options_.add_argument("--kind", default="completion")
    options_.add_argument("--budgets", type=int, nargs="+", default=[2, 4])
    options_.add_argument("--temperature", type=float, default=0.0)
    options = options_.parse_args()
    tell(rows(loaded(options.target, options), loaded(options.draft, options), options), options)


if __name__ == "__main__":
    main()
