"""MaskBench: how many schemas are enforced, how well, and how long a mask takes. No model needed.

    python tests/bench/maskbench.py --data FOLDER [--cases draft7] [--limit N] [--results FILE]
        [--restart] [--json]

FOLDER has `maskbench/maskbench.parquet`, cases of github.com/guidance-ai/jsonschemabench with their
valid and invalid instances, and `gpt2_tokenizer/tokenizer.json`, 50,257 byte-level tokens. Each
instance is fed to the compiled schema token by token: it is accepted if each mask has its next
token and it may end there. `--limit N` takes N cases, spread evenly over all of them.
`--cases draft7` takes the official test suite of JSON Schema instead, draft 7, from
`json_schema_suite/draft7.parquet`, which has instances of any form for each keyword.

Each case is appended to FILE (build/<cases>.jsonl) when it is done, and an interrupted run goes
on where it stopped; a case that took the whole process down is a crash then. One thread. It holds
if no invalid instance was accepted and nothing crashed.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, TextIO

import numpy as np

import sdk
from sdk.environment import describe
from sdk.progress import terminal
from sdk.runtimes.generation.constraints import GrammarConstraint, compile_constraint

PASS, COMPILE, LIMIT, VALIDATION, INVALIDATION, CRASH = OUTCOMES = (
    "pass",
    "compile error",
    "parser's limit",
    "validation error",
    "invalidation error",
    "crash",
)
MEANING = {
    PASS: "all instances judged right",
    COMPILE: "refused when compiled, with the reason",
    LIMIT: "the parser gave up over a mask, with the reason",
    VALIDATION: "a valid instance was refused",
    INVALIDATION: "an invalid instance was accepted",
    CRASH: "the process ended",
}
DRAFT = "http://json-schema.org/draft-07/schema#"
PERCENTILES = (50, 95, 99)
TOKENIZER = "gpt2_tokenizer/tokenizer.json"
CASES = {"maskbench": "maskbench/maskbench.parquet", "draft7": "json_schema_suite/draft7.parquet"}


@dataclass
class Result:
    """One schema with its instances; times in microseconds."""

    name: str
    outcome: str = CRASH
    reason: str = ""
    first_mask_us: float = 0.0
    """Compiling the schema and making the first mask, with the tokenizer's table ready."""
    masks_us: list[float] = field(default_factory=list)
    """Taking a token and making the mask behind it, for each token of the instances."""
    valid: int = 0
    invalid: int = 0
    """Instances that were judged right."""


class Bench:
    """A tokenizer, and the cases that it runs."""

    def __init__(self, tokenizer: str) -> None:
        from tokenizers import Tokenizer

        self._json, self._tokenizer = tokenizer, Tokenizer.from_str(tokenizer)
        self._vocabulary = self._tokenizer.get_vocab_size()
        self._eos = (self._tokenizer.token_to_id("<|endoftext|>"),)
        self._compile({"type": "null"})  # makes the table of tokens

    def run(self, name: str, case: dict[str, Any]) -> Result:
        """One case; what cannot be compiled is not run."""
        result = Result(name)
        start = time.perf_counter()
        try:
            constraint = self._compile(case["schema"])
            constraint.allowed(constraint.start())
        except sdk.InputError as error:
            result.outcome, result.reason = COMPILE, str(error.got)
            return result
        except sdk.GenerationError as error:
            result.outcome, result.reason = LIMIT, str(error.got)
            return result
        result.first_mask_us = micro(start)
        self._judge(constraint, case["tests"], result)
        return result

    def _compile(self, schema: Any) -> GrammarConstraint:
        text = json.dumps(schema)  # so that schemas that are no mappings get to the library
        return compile_constraint(
            sdk.JsonSchema(text), self._json, vocabulary=self._vocabulary, eos=self._eos
        )

    def _judge(
        self, constraint: GrammarConstraint, tests: list[dict[str, Any]], result: Result
    ) -> None:
        outcomes = {PASS}
        for index, test in enumerate(tests):
            text = json.dumps(test["data"], ensure_ascii=False)
            tokens = self._tokenizer.encode(text, add_special_tokens=False).ids
            try:
                accepted = accepts(constraint, tokens, result.masks_us)
            except sdk.GenerationError as error:
                result.outcome, result.reason = LIMIT, f"instance {index}: {error.got}"
                return
            if accepted != test["valid"]:
                outcomes.add(INVALIDATION if accepted else VALIDATION)
                result.reason = f"instance {index} {'accepted' if accepted else 'refused'}"
            result.valid += accepted and test["valid"]
            result.invalid += not accepted and not test["valid"]
        result.outcome = max(outcomes, key=OUTCOMES.index)


def accepts(constraint: GrammarConstraint, tokens: Iterable[int], times: list[float]) -> bool:
    """Whether each token is in the mask before it, and the output may end behind the last."""
    state = constraint.start()
    for token in tokens:
        start = time.perf_counter()
        legal = bool(constraint.allowed(state)[token])
        if legal:
            state = constraint.advance(state, token)
        times.append(micro(start))
        if not legal:
            return False
    return constraint.complete(state)


def micro(start: float) -> float:
    """Microseconds since `start`, to a tenth."""
    return round(1e6 * (time.perf_counter() - start), 1)


Case = tuple[str, dict[str, Any]]


def load(file: Path, limit: int) -> list[Case]:
    """Names and cases, in the file's order; with a limit, evenly spread."""
    import pyarrow.parquet as parquet

    cases = [case for row in parquet.read_table(file).to_pylist() for case in cases_of(row)]
    if 0 < limit < len(cases):
        cases = [cases[i * len(cases) // limit] for i in range(limit)]
    return cases


def cases_of(row: dict[str, str]) -> list[Case]:
    """A row is a case, or a file of the suite with several; the suite's remotes are none."""
    if row["name"].startswith("remotes/"):
        return []
    found = json.loads(row["case"])
    if isinstance(found, dict):
        return [(row["name"], found)]
    for case in found:
        if isinstance(case["schema"], dict):  # the suite's folder says the draft, not its schemas
            case["schema"] = {"$schema": DRAFT} | case["schema"]
    return [(f"{row['name']} {i}: {case['description']}", case) for i, case in enumerate(found)]


def resume(file: Path, setting: dict[str, Any]) -> dict[str, Result]:
    """What an earlier run with the same setting has done; a case begun and not done is a crash."""
    if not file.is_file():
        return {}
    lines = [json.loads(line) for line in file.read_text().splitlines() if line.endswith("}")]
    if not lines or lines[0] != setting:
        return {}
    return {line["name"]: Result(**line) for line in lines[1:]}


def run(bench: Bench, cases: list[Case], done: dict[str, Result], out: TextIO) -> Iterator[Result]:
    """All results, new ones written as they come."""
    for name, case in cases:
        if name not in done:
            write(out, asdict(Result(name, reason="the process ended")))
            done[name] = bench.run(name, case)
            write(out, asdict(done[name]))
        yield done[name]


def write(out: TextIO, line: dict[str, Any]) -> None:
    """Flushed, so that it is there whatever comes."""
    out.write(json.dumps(line) + "\n")
    out.flush()


def report(results: list[Result], setting: dict[str, Any]) -> dict[str, Any]:
    """Counts and percentiles."""
    outcomes = Counter(result.outcome for result in results)
    masks = np.array([time for result in results for time in result.masks_us])
    first = np.array([result.first_mask_us for result in results if result.first_mask_us])
    reasons = Counter(shortened(r.reason) for r in results if r.outcome == COMPILE)
    return {
        **setting,
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "cases": len(results),
        "outcomes": {outcome: outcomes[outcome] for outcome in OUTCOMES},
        "instances_right": {
            "valid": sum(result.valid for result in results),
            "invalid": sum(result.invalid for result in results),
        },
        "tokens": len(masks),
        "mask_us": percentiles(masks),
        "first_mask_us": percentiles(first),
        "compile_errors": dict(reasons.most_common(12)),
        "others": {
            r.name: f"{r.outcome}: {r.reason}" for r in results if r.outcome in OUTCOMES[2:]
        },
    }


def shortened(reason: str) -> str:
    """A reason without what is different in each schema."""
    first = reason.splitlines()[0]
    return first.split(":")[0] if "Unimplemented" not in first else first


def percentiles(values: np.ndarray[Any, Any]) -> dict[str, float]:
    """Of times in microseconds."""
    if not len(values):
        return {}
    found = {f"p{p}": round(float(np.percentile(values, p)), 1) for p in PERCENTILES}
    return {"mean": round(float(values.mean()), 1), **found, "max": round(float(values.max()), 1)}


def table(found: dict[str, Any]) -> str:
    """For people, in Markdown."""
    lines = ["| outcome | schemas | | |", "|---|--:|--:|---|"]
    for outcome, count in found["outcomes"].items():
        share = f"{count / found['cases']:.1%}"
        lines.append(f"| {outcome} | {count} | {share} | {MEANING[outcome]} |")
    lines += ["", "| microseconds | mean | p50 | p95 | p99 | max |", "|---|--:|--:|--:|--:|--:|"]
    for key, label in (("mask_us", "mask"), ("first_mask_us", "compile and first mask")):
        cells = " | ".join(f"{value:,.0f}" for value in found[key].values())
        lines.append(f"| {label} | {cells} |")
    lines += ["", f"{found['tokens']:,} tokens", "", "| compile error | schemas |", "|---|--:|"]
    lines += [f"| {reason} | {count} |" for reason, count in found["compile_errors"].items()]
    return "\n".join(lines)


def followed(results: Iterable[Result], total: int) -> list[Result]:
    """All results, with a line on a terminal that says how far it is."""
    found: list[Result] = []
    with terminal(None) as progress:
        for result in results:
            found.append(result)
            progress(result.name[:40], len(found), total)
    return found


def main() -> int:
    """Run, print, and say whether it holds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--cases", choices=CASES, default="maskbench")
    parser.add_argument("--limit", type=int, default=0)
    parser.add_argument("--results", type=Path, help="build/<cases>.jsonl")
    parser.add_argument("--restart", action="store_true", help="forget an earlier run")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    files = [options.data / name for name in (CASES[options.cases], TOKENIZER)]
    if missing := [str(file) for file in files if not file.is_file()]:
        print(f"skipped: there is no {' and no '.join(missing)}", file=sys.stderr)
        return 0
    file = options.results or Path("build", f"{options.cases}.jsonl")
    setting = {
        "llguidance": version("llguidance"),
        "tokenizers": version("tokenizers"),
        "python": platform.python_version(),
        "processor": describe().get("processor", platform.machine()),
    }
    cases = load(files[0], options.limit)
    done = {} if options.restart else resume(file, setting)
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a" if done else "w") as out:
        if not done:
            write(out, setting)
        bench = Bench(files[1].read_text())
        results = followed(run(bench, cases, done, out), len(cases))
    found = report(results, setting)
    print(json.dumps(found, indent=1) if options.json else table(found))
    return int(found["outcomes"][INVALIDATION] + found["outcomes"][CRASH] > 0)


if __name__ == "__main__":
    sys.exit(main())
