"""EAGLE's head and FSPAD's two changes (arXiv:2408.15562), trained alike and used alike.

    python tests/bench/speculation/heads.py --target FOLDER --prompts FOLDER

Heads are trained (`--steps`) on text of the standard library with the target's hidden states. Rates
are by place in a chain of four; `seeds` gives the spread, which at this size may hide the gain.
`ms` are of a token, of plain decoding and with the head, each prompt asked of both in turn.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from pair import Tally, loaded, parser, prompts, tell
from s2d import batches

import sdk
from sdk.model import Model
from sdk.recipes.drafts.feature_head import HeadTraining, compile_head, train_head
from sdk.runtimes.generation.feature_drafter import FeatureDrafter

KINDS = {
    "EAGLE": (False, False),
    "with feature sampling": (True, False),
    "with partial alignment": (False, True),
    "FSPAD": (True, True),
}


def rows(target: Model, options: Any, folder: Path) -> Iterator[dict[str, Any]]:
    """One for each head."""
    model = transformers.AutoModelForCausalLM.from_pretrained(options.target)
    for name in options.heads:
        sampling, partial = KINDS[name]
        taken, places, spent = [], [], []
        for seed in range(options.seeds):
            torch.manual_seed(seed)
            settings = HeadTraining(
                sampling=sampling, partial=partial, learning_rate=options.learning_rate
            )
            head, losses = train_head(model, batches(target, options), settings)
            output = folder / f"{name.replace(' ', '-')}-{seed}.edge"
            aim = options.head_target or options.engine
            compile_head(head, target=aim, output=output, threads=options.threads)
            plain, tally = _tallies(target, output, options)
            taken.append(tally.accepted)
            spent.append((plain.milliseconds, tally.milliseconds))
            drafts = sum(one.num_drafts for one in tally.results)
            places.append([
                sum((one.accepted_per_position + [0] * 4)[i] for one in tally.results) / drafts
                for i in range(4)
            ])  # fmt: skip
        count = sum(weight.numel() for weight in head.trainable())
        plain_ms, ms = np.mean(spent, axis=0)
        yield {
            "head": name, "parameters": count, "smooth L1": losses[-1][0], "entropy": losses[-1][1],
            "tokens a pass": float(np.mean(taken)), "spread": float(np.std(taken)),
            "ms plain": float(plain_ms), "ms": float(ms),
            **{f"place {i + 1}": float(np.mean([p[i] for p in places])) for i in range(4)},
        }  # fmt: skip


def _tallies(target: Model, head: Path, options: Any) -> tuple[Tally, Tally]:
    """Plain and with the head."""
    plain, tally = Tally(), Tally()
    with sdk.load(head, threads=options.threads) as loaded_head:
        drafter = FeatureDrafter(loaded_head.session)
        for prompt in prompts(target, options, options.kind):
            wanted = plain.add(target.generate(prompt, max_new_tokens=options.tokens))
            result = target.generate(
                prompt, max_new_tokens=options.tokens, drafter=drafter, num_draft_tokens=4
            )
            assert tally.add(result).tokens == wanted.tokens, "a draft changed the output"
    return plain, tally


def main() -> None:
    """Print the table."""
    options_ = parser(__doc__, requests=12)
    options_.add_argument("--kind", default="completion")
    options_.add_argument("--heads", nargs="+", choices=KINDS, default=list(KINDS))
    options_.add_argument("--head-target", help="of sdk.compile; default: that of the target")
    options_.add_argument("--steps", type=int, default=150)
    options_.add_argument("--seeds", type=int, default=1)
    options_.add_argument("--trained", type=int, default=400_000, help="tokens to train on")
    options_.add_argument("--learning-rate", type=float, default=1e-3)
    options = options_.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        tell(rows(loaded(options.target, options, features=True), options, Path(folder)), options)


if __name__ == "__main__":
    main()
