"""OSD (arXiv:2310.07177): a draft that learns online, over a switch of the domain and back.

    python tests/bench/speculation/osd.py --target FOLDER --draft FOLDER --prompts FOLDER

The stream is a set of prompts, another one, and the first again. Acceptance at the beginning and at
the end of each part, frozen and learning; all outputs are compared with plain ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import transformers
from pair import Tally, loaded, parser, prompts, tell

from sdk.model import Model
from sdk.recipes.drafts.online import OnlineConfig, OnlineDrafter


def rows(target: Model, options: Any) -> Iterator[dict[str, Any]]:
    """One for the frozen, one for the learning draft."""
    sets = [prompts(target, options, kind) for kind in options.kinds]
    parts = [sets[index] for index in (0, 1, 0)]
    plain = {
        tuple(prompt): target.generate(prompt, max_new_tokens=options.tokens).tokens
        for part in sets
        for prompt in part
    }
    settings = OnlineConfig(interval=options.interval, learning_rate=options.learning_rate)
    for learning in (False, True):
        draft = transformers.AutoModelForCausalLM.from_pretrained(options.draft)
        drafter = OnlineDrafter(draft, settings)
        drafter.learning = learning
        row: dict[str, Any] = {"learns": str(learning)}
        for place, part in enumerate(parts):
            rates = []
            for prompt in part * options.rounds:
                result = target.generate(
                    prompt, max_new_tokens=options.tokens, drafter=drafter,
                    num_draft_tokens=options.budget,
                )  # fmt: skip
                assert result.tokens == plain[tuple(prompt)], "learning changed the output"
                rates.append(result)
            edge = max(1, len(rates) // 4)
            for name, some in (("first", rates[:edge]), ("last", rates[-edge:])):
                tally = Tally([one.stats for one in some])
                row[f"{'ABA'[place]}{place + 1} {name}"] = tally.rate
        yield row | {"steps": len(drafter.losses)}


def main() -> None:
    """Print the table."""
    options_ = parser(__doc__, requests=24, tokens=32)
    options_.add_argument("--kinds", nargs=2, default=["completion", "spec_bench"])
    options_.add_argument("--rounds", type=int, default=1, help="times that each set is gone over")
    options_.add_argument("--interval", type=int, default=4)
    options_.add_argument("--learning-rate", type=float, default=3e-4)
    options_.add_argument("--budget", type=int, default=4)
    options = options_.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    tell(rows(loaded(options.target, options), options), options)


if __name__ == "__main__":
    main()
