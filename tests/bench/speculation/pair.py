"""What the scripts of this folder share: a target and a draft, prompts, and rows of figures."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sysconfig
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import sdk
from sdk.generating import GenerationResult
from sdk.model import Model
from sdk.runtimes.generation.statistics import Statistics

SOURCES = Path(sysconfig.get_paths()["stdlib"])


def parser(
    description: str | None, *, requests: int = 16, tokens: int = 64
) -> argparse.ArgumentParser:
    """Options that every script has."""
    made = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawTextHelpFormatter
    )
    made.add_argument("--target", type=Path, required=True, help="Hugging Face folder")
    made.add_argument("--draft", type=Path, help="Hugging Face folder of the same tokenizer")
    made.add_argument("--prompts", type=Path, required=True,
                      help="folder of .jsonl files with a field `prompt`")  # fmt: skip
    made.add_argument("--requests", type=int, default=requests)
    made.add_argument("--tokens", type=int, default=tokens, help="new tokens of a request")
    made.add_argument("--context", type=int, default=128, help="most tokens of a prompt")
    made.add_argument("--threads", type=int, default=1)
    made.add_argument("--engine", default="onnxruntime")
    made.add_argument("--scratch", type=Path,
                      default=Path(tempfile.gettempdir()) / "edge-speculation",
                      help="where compiled artifacts are kept")  # fmt: skip
    made.add_argument("--json", action="store_true")
    return made


def loaded(folder: Path, options: argparse.Namespace, **settings: Any) -> Model:
    """The model, compiled once for each state of its folder."""
    folder = Path(os.path.realpath(folder))
    weights = (folder / "model.safetensors").stat()
    state = f"{folder} {weights.st_mtime_ns} {weights.st_size} {options.engine} {settings}"
    output = options.scratch / f"{hashlib.sha256(state.encode()).hexdigest()[:16]}.edge"
    options.scratch.mkdir(parents=True, exist_ok=True)
    if not output.exists():
        sdk.compile(
            folder, task="text-generation", target=options.engine, output=output,
            threads=options.threads, progress=lambda *_: None, **settings,
        )  # fmt: skip
    return sdk.load(output, threads=options.threads)


def prompts(model: Model, options: argparse.Namespace, kind: str) -> list[list[int]]:
    """The last tokens of each prompt of a set."""
    encode = model.language.tokenizer.encode  # type: ignore[union-attr]
    lines = (options.prompts / f"{kind}.jsonl").read_text(encoding="utf-8").splitlines()
    texts = [json.loads(line)["prompt"] for line in lines]
    return [encode(text)[-options.context :] for text in texts[: options.requests]]


def corpus(model: Model, most: int, *, skip: int = 0) -> Iterator[list[int]]:
    """Tokens of the standard library's sources, file by file, `most` in all."""
    encode, count = model.language.tokenizer.encode, 0  # type: ignore[union-attr]
    for path in sorted(SOURCES.glob("*.py"))[skip:]:
        tokens = encode(path.read_text(encoding="utf-8", errors="ignore"))
        yield tokens[: most - count]
        count += len(tokens)
        if count >= most:
            return


@dataclass
class Tally:
    """Figures over requests."""

    results: list[Statistics] = field(default_factory=list)

    def add(self, result: GenerationResult) -> GenerationResult:
        """Count a result."""
        self.results.append(result.stats)
        return result

    @property
    def accepted(self) -> float:
        """Mean accepted tokens: new tokens per pass of the target."""
        return _share(self.results, "new_tokens", "target_forward_passes")

    @property
    def rate(self) -> float:
        """Accepted of the proposed tokens."""
        return _share(self.results, "draft_tokens_accepted", "draft_tokens_proposed")

    @property
    def error(self) -> float:
        """Standard error over requests of the mean accepted tokens."""
        each = [one.mean_accepted_tokens for one in self.results]
        return float(np.std(each, ddof=1) / np.sqrt(len(each))) if len(each) > 1 else 0.0

    @property
    def milliseconds(self) -> float:
        """A token's, without reading prompts."""
        spent = sum(one.total_ms - one.prefill_ms for one in self.results)
        return spent / sum(one.new_tokens for one in self.results)


def _share(results: Sequence[Statistics], part: str, whole: str) -> float:
    below = sum(getattr(one, whole) for one in results)
    return sum(getattr(one, part) for one in results) / below if below else 0.0


def tell(rows: Iterable[dict[str, Any]], options: argparse.Namespace) -> None:
    """A table, or one JSON document."""
    rows = list(rows)
    if options.json:
        print(json.dumps(rows, indent=1))
        return
    names = list(rows[0])
    shown = [[_cell(row[name]) for name in names] for row in rows]
    widths = [max(len(name), *(len(line[i]) for line in shown)) for i, name in enumerate(names)]
    for line in (names, *shown):
        print("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)))


def _cell(value: object) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)
