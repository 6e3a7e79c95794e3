"""S2D (arXiv:2407.01955): one draft, trained at its exits, for two targets.

    python tests/bench/speculation/s2d.py --target FOLDER --second FOLDER --draft FOLDER ...

The draft is trained on at all of its exits (`--steps`) with text of the standard library; beside it
stands the same draft, trained on as long at its last exit alone. Mean accepted tokens for each
target, and how many layers a drafted token took, at the first exit, sorted, and at the last.
"""

from __future__ import annotations

import argparse
import copy
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from pair import Tally, corpus, loaded, parser, prompts, tell

from sdk.compilers.segments import decoder_layers
from sdk.model import Model
from sdk.recipes.drafts.sorted import train_sorted
from sdk.runtimes.generation.sorted_drafter import SortedDrafter


def batches(model: Model, options: Any) -> Iterator[torch.Tensor]:
    """[8, 128] tokens of the standard library, in a random order."""
    text = torch.tensor([t for file in corpus(model, options.trained) for t in file])
    random = torch.Generator().manual_seed(0)
    for _ in range(options.steps):
        starts = torch.randint(0, len(text) - 128, (8,), generator=random).tolist()
        yield torch.stack([text[start : start + 128] for start in starts])


def segments(draft: Any, exits: Sequence[int], folder: Path, options: Any) -> list[Model]:
    """The draft's parts, compiled."""
    draft.save_pretrained(folder)
    own = argparse.Namespace(**{**vars(options), "scratch": folder / "compiled"})
    pairs = zip((0, *exits[:-1]), exits, strict=True)
    return [loaded(folder, own, layers=pair) for pair in pairs]


def rows(targets: dict[str, Model], options: Any, folder: Path) -> Iterator[dict[str, Any]]:
    """One for each draft and way to use it."""
    base = transformers.AutoModelForCausalLM.from_pretrained(options.draft)
    layers = len(decoder_layers(base))
    exits = options.exits or [1, layers]
    for name, trained in (("sorted", exits), ("last exit alone", [layers])):
        draft = copy.deepcopy(base)
        some = next(iter(targets.values()))
        train_sorted(draft, batches(some, options), trained, learning_rate=options.learning_rate)
        parts = segments(draft, exits, folder / name.replace(" ", "-"), options)
        for used, limit in (("first", 0.0), ("by sureness", 0.5), ("last", 1.0)):
            drafter = SortedDrafter(
                [part.session for part in parts], thresholds=[limit] * (len(exits) - 1)
            )
            row: dict[str, Any] = {"trained at": name, "exit": used}
            for label, target in targets.items():
                row[label] = _accepted(target, drafter, options)
            passes = sum(drafter.exits.used)
            taken = sum(n * exits[i] for i, n in enumerate(drafter.exits.used)) / passes
            yield row | {"layers": float(taken)}


def _accepted(target: Model, drafter: SortedDrafter, options: Any) -> float:
    tally = Tally()
    for prompt in prompts(target, options, options.kind):
        plain = target.generate(prompt, max_new_tokens=options.tokens)
        result = target.generate(
            prompt, max_new_tokens=options.tokens, drafter=drafter, num_draft_tokens=4
        )
        assert tally.add(result).tokens == plain.tokens, "a draft changed the output"
    return tally.accepted


def main() -> None:
    """Print the table."""
    options_ = parser(__doc__, requests=12)
    options_.add_argument("--second", type=Path, required=True, help="another target")
    options_.add_argument("--kind", default="completion")
    options_.add_argument("--exits", type=int, nargs="+")
    options_.add_argument("--steps", type=int, default=150)
    options_.add_argument("--trained", type=int, default=400_000, help="tokens to train on")
    options_.add_argument("--learning-rate", type=float, default=1e-3)
    options = options_.parse_args()
    torch.set_num_threads(options.threads)
    targets = {
        "target": loaded(options.target, options), "second": loaded(options.second, options),
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        tell(rows(targets, options, Path(folder)), options)


if __name__ == "__main__":
    main()
