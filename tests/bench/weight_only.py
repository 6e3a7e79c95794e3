"""Weight-only precisions of a small trained Llama: size, perplexity and latency, by method.

    python tests/bench/weight_only.py --model FOLDER [--tokens 32] [--threads 1] [--json]
    python tests/bench/weight_only.py --random [--tokens 2]

FOLDER is a Hugging Face model folder of a causal language model, for example stories260k. It writes
its own text: stories sampled from it (seeds 0 to 11) are split, one half calibrates, the other is
scored, so that perplexity says how far a build is from the model and not what else it cannot write.
Layers whose inputs the groups do not divide stay in float and are named. Latency is of one call,
all builds of an engine in turn, in one run. Weights must outweigh the arithmetic before reading
fewer bits of them pays: `--random` times a Llama of 25 million random weights, rounded to nearest.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import sdk
from sdk.compilers import lower
from sdk.compilers.capture import capture
from sdk.compilers.program import Program
from sdk.compilers.weight_only import METHODS, compress
from sdk.compilers.weight_only_graph import find_weights
from sdk.runtimes import open_session
from sdk.signature import Array
from sdk.target import Target
from sdk.timing import interleave

ENGINES = ("onnxruntime", "openvino")
LENGTH, STORIES = 128, 12
Row = dict[str, Any]


class Logits(nn.Module):
    """Token ids [1, length] to logits [1, length, vocabulary], without a cache."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor) -> Tensor:
        """Logits of each next token."""
        return self.model(input_ids=ids, use_cache=False).logits  # type: ignore[no-any-return]


def load(folder: Path | None) -> Any:
    """The model of a folder, or one of random weights."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    if folder is not None:
        return AutoModelForCausalLM.from_pretrained(folder).eval()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=8192, hidden_size=512, intermediate_size=1408, num_hidden_layers=7,
        num_attention_heads=8, num_key_value_heads=4, tie_word_embeddings=True,
    )  # fmt: skip
    return AutoModelForCausalLM.from_config(config).eval()


def stories(model: Any) -> list[dict[str, Array]]:
    """Texts of the model's own, LENGTH tokens each."""
    begin = torch.tensor([[model.config.bos_token_id]])
    made = []
    for seed in range(STORIES):
        torch.manual_seed(seed)
        ids = model.generate(
            begin, do_sample=True, min_new_tokens=LENGTH - 1, max_new_tokens=LENGTH - 1
        )
        made.append({"ids": ids.numpy()})
    return made


def perplexity(run: Callable[[dict[str, Array]], Mapping[str, Array]], text: list[Any]) -> float:
    """exp of the mean negative log probability of each next token."""
    losses = []
    for feed in text:
        logits = torch.from_numpy(run(feed)["output"][0, :-1])
        wanted = torch.from_numpy(feed["ids"][0, 1:])
        losses.append(float(nn.functional.cross_entropy(logits, wanted)))
    return float(np.exp(np.mean(losses)))


def programs(
    base: Program, calibration: list[Any], wanted: tuple[str, ...]
) -> Iterator[tuple[str, Program]]:
    """Every precision and group size by every wanted method, by name."""
    yield "fp32", base
    for method in [name for name in METHODS["w8"] if name in wanted]:
        yield f"w8 {method}", compress(base, "w8", method=method)
    for precision, group in (("int4", 32), ("int4", 64), ("int4", 128), ("int2", 32)):
        keep = undivided(base, group)
        if keep is None:
            continue
        for method in [name for name in METHODS[precision] if name in wanted]:
            yield f"{precision} g{group} {method}", compress(
                base, precision, group_size=group, method=method, keep_float=keep,
                calibration=calibration,
            )  # fmt: skip


def undivided(base: Program, group: int) -> list[str] | None:
    """The layers that groups do not fit; None where that is all of them."""
    weights = find_weights(base.exported.module(check_guards=False))  # type: ignore[arg-type]
    bad = [weight for weight in weights if weight.matrix.shape[1] % group]
    return None if len(bad) == len(weights) else [name for w in bad for name in w.layers]


def measure(
    made: Mapping[str, Program], engine: str, text: list[Any], options: argparse.Namespace
) -> list[Row]:
    """One row a build of `engine`, timed in turn."""
    sessions, rows = {}, []
    with tempfile.TemporaryDirectory() as folder:
        for index, (name, program) in enumerate(made.items()):
            target = Target(engine, precision=program.precision)
            build = lower(program, target, Path(folder) / str(index))
            sessions[name] = open_session(
                build.file, program.signature, target, threads=options.threads
            )
            size = sum(file.stat().st_size for file in build.file.parent.iterdir())
            rows.append({"engine": engine, "build": name, "kilobytes": size / 1e3})
        feed = {"ids": text[0]["ids"][:, : options.tokens].copy()}
        calls = {name: _call(session, feed) for name, session in sessions.items()}
        times = interleave(calls, runs=options.rounds, budget=120.0)
        for row, (name, session) in zip(rows, sessions.items(), strict=True):
            row["perplexity"] = perplexity(session.run, text)
            row["p50_us"], row["spread"] = times[name].p50, times[name].spread
            row["speedup"] = times["fp32"].p50 / times[name].p50
            session.close()
    return rows


def _call(session: Any, feed: Mapping[str, Array]) -> Callable[[], object]:
    return lambda: session.run(feed)


def table(rows: list[Row]) -> str:
    """The rows for people."""
    head = f"{'engine':12} {'build':28} {'kB':>8} {'perplexity':>11} {'p50 us':>9} {'x fp32':>7}"
    lines = [
        f"{r['engine']:12} {r['build']:28} {r['kilobytes']:8.0f} {r['perplexity']:11.3f} "
        f"{r['p50_us']:9.0f} {r['speedup']:7.2f}"
        for r in rows
    ]
    return "\n".join([head, *lines])


def main() -> int:
    """Build, score and time everything, and print it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    given = parser.add_mutually_exclusive_group(required=True)
    given.add_argument("--model", type=Path)
    given.add_argument("--random", action="store_true")
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    model = load(options.model)
    text = stories(model)
    length = sdk.Dim("length", 2, options.tokens, LENGTH)
    base = capture(Logits(model), {"ids": text[0]["ids"][:, :32]}, {"ids": {1: length}})
    wanted = ("rtn",) if options.random else METHODS["int4"]
    made = dict(programs(base, text[: STORIES // 2], wanted))
    rows = [
        row for engine in ENGINES for row in measure(made, engine, text[STORIES // 2 :], options)
    ]
    kept = undivided(base, 32) or []
    print(json.dumps(rows, indent=1) if options.json else table(rows))
    print(f"in float where groups of 32 do not fit: {', '.join(kept) or 'none'}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
