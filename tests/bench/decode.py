"""Microseconds a token of our own decoding: plain, the loop's part of it, and with prompt lookup.

    python tests/bench/decode.py [FOLDER] [--precision fp32 w8 int4] [--threads 1] [--json]

FOLDER is a Hugging Face causal language model; without one a random Llama of 12 M parameters is
written, whose text cannot be guessed but whose times are those of a trained one. `copy` prompts
repeat themselves, as edits of a given text do: on them a random model mostly cannot show a gain.
`pass` is the engine's step in the loop, `loop` all else per round, `wide` the cost of a step of 8
tokens over one of one token. Peers are not here: they need environments of their own.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import transformers

import sdk
from sdk.errors import QuantizationError
from sdk.generating import GenerationResult
from sdk.runtimes.generation.budget import CostTable

ENGINES = ("onnxruntime", "openvino")
TOKENS = 128
RUNS = 5


@dataclass(frozen=True)
class Row:
    """Of one engine and precision; times are medians over runs, in microseconds."""

    engine: str
    precision: str
    megabytes: float
    token: float
    step: float
    loop: float
    wide: float
    copy_token: float
    copy_lookup_token: float
    copy_accepted: float

    @property
    def speedup(self) -> float:
        """Of prompt lookup on the copy prompt."""
        return self.copy_token / self.copy_lookup_token


def random_llama(folder: Path) -> Path:
    """12 M parameters, a vocabulary of 8,192."""
    config = transformers.LlamaConfig(
        vocab_size=8192, hidden_size=384, num_hidden_layers=6, num_attention_heads=6,
        num_key_value_heads=3, intermediate_size=1024, max_position_embeddings=1024,
        tie_word_embeddings=True,
    )  # fmt: skip
    transformers.set_seed(0)
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def prompts(vocabulary: int) -> tuple[list[int], list[int]]:
    """One without, one with repeats: 64 tokens each."""
    plain = [3 + 7919 * i % (vocabulary - 3) for i in range(64)]
    return plain, plain[:16] * 4


def measure(folder: Path, precisions: list[str], threads: int) -> Iterator[Row]:
    """A row for each engine and precision that the model can have."""
    with tempfile.TemporaryDirectory() as scratch:
        for engine in ENGINES:
            for precision in precisions:
                output = Path(scratch) / f"{engine}-{precision}.edge"
                try:
                    sdk.compile(
                        folder, task="text-generation", target=f"{engine}:cpu:{precision}",
                        output=output, waive=["slower", "fidelity"], threads=threads,
                    )  # fmt: skip
                except QuantizationError as error:
                    print(f"{engine}:{precision}: {error.what}")
                    continue
                yield _row(output, engine, precision, threads)


def _row(output: Path, engine: str, precision: str, threads: int) -> Row:
    with sdk.load(output, threads=threads) as model:
        session = model.language.cached.session
        plain, copy = prompts(session.vocabulary)
        whole = _median(model, plain, None)
        repeated, drafted = _median(model, copy, None), _median(model, copy, "prompt_lookup")
        stats = whole.stats
        session.extend(plain)
        return Row(
            engine=engine,
            precision=precision,
            megabytes=model.artifact.size / 1e6,
            token=_token(whole),
            step=1e3 * stats.verify_ms / stats.num_rounds,
            loop=1e3 * stats.overhead_ms,
            wide=CostTable.measure(session, widths=(1, 8), runs=21)(8),
            copy_token=_token(repeated),
            copy_lookup_token=_token(drafted),
            copy_accepted=drafted.stats.mean_accepted_tokens,
        )


def _median(model: sdk.Model, prompt: list[int], drafter: str | None) -> GenerationResult:
    """The run of the median time; the first one, which binds and prepares shapes, is left out."""
    results = [
        model.generate(prompt, max_new_tokens=TOKENS, eos=(), drafter=drafter)
        for _ in range(RUNS + 1)
    ][1:]
    return sorted(results, key=_token)[RUNS // 2]


def _token(result: GenerationResult) -> float:
    """Microseconds a token, without reading the prompt."""
    stats = result.stats
    return 1e3 * (stats.total_ms - stats.prefill_ms) / stats.new_tokens


def main() -> None:
    """Print the table or one JSON document."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--precision", nargs="+", default=["fp32", "w8", "int4"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.folder or random_llama(Path(scratch))
        rows = list(measure(folder, options.precision, options.threads))
    if options.json:
        print(json.dumps([{**asdict(row), "speedup": row.speedup} for row in rows], indent=1))
        return
    print(f"{'engine':12} {'':5} {'MB':>6} {'token':>7} {'pass':>7} {'loop':>5} {'wide':>5}"
          f" {'copy':>7} {'lookup':>7} {'gain':>5} {'MAT':>5}")  # fmt: skip
    for row in rows:
        print(f"{row.engine:12} {row.precision:5} {row.megabytes:6.1f} {row.token:7.0f}"
              f" {row.step:7.0f} {row.loop:5.0f} {row.wide:5.2f} {row.copy_token:7.0f}"
              f" {row.copy_lookup_token:7.0f} {row.speedup:5.2f}"
              f" {row.copy_accepted:5.2f}")  # fmt: skip


if __name__ == "__main__":
    main()
