"""Generation beside the peers': the same weights, prompts and threads, request by request in turn.

    python tests/bench/generate.py --target FOLDER [--draft FOLDER] [--prompts FOLDER]
        [--precision fp32 int8 int4] [--threads 1] [--clock cpu] [--envs FOLDER] [--json]

FOLDER of `--target` and `--draft` are Hugging Face causal language models of one tokenizer; without
`--target` a random Llama of 12 M parameters is written. `--prompts` holds `<set>.jsonl` files with
a `prompt` a line; without it there is one set of repeating tokens. Each driver runs in a process
of its own, peers in environments below `--envs`: {ours on ONNX Runtime, there with our kernels as
well, ours on OpenVINO, OpenVINO GenAI, ONNX Runtime GenAI, transformers (float32 alone)} x {plain,
prompt lookup, draft model, and
ours `trigram` and `fused`}. Ours choose the size of drafts by what they measure, peers have their
defaults.

A prompt is asked of all of them in random order, once; nobody keeps a cache between requests.
Times are those of a token behind the first, so without the prompt's; `--clock cpu` counts what the
process computed in place of the time that went by, all that can be compared on a machine that
others use. Ratios are medians over prompts with their 95 % intervals. int8 is weight-only for all.
`floor` is the time of a plain token over the tokens a pass of the target: what a drafter would
reach whose drafts and whose width cost nothing.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from decode import random_llama
from intervals import median_of
from peer_environments import OFFLINE, PeerError, environment

DRIVERS = Path(__file__).with_name("generation")
CLOCKS = {"wall": 0, "cpu": 1}
WANTED = {"completion": 1.25, "edit": 1.6}
"""Our best speculation over the fastest peer's plain decoding, by set."""
WITH_KERNELS = {"completion": 1.5, "edit": 2.0}
"""The same where our kernels are in use."""
PLAIN, SPECULATION, NEVER_UNDER = 0.95, 1.2, 0.97
Key = tuple[str, str]
"""A driver and its mode."""


@dataclass(frozen=True)
class Driver:
    """One implementation: its script, its environment, and the engine that it is told."""

    name: str
    script: str
    environment: str | None = None
    engine: str = ""
    precisions: tuple[str, ...] = ("fp32", "int8", "int4")


DRIVEN = (
    Driver("ours/onnxruntime", "drive_ours.py", engine="onnxruntime"),
    Driver("ours/openvino", "drive_ours.py", engine="openvino"),
    Driver("ours/kernels", "drive_ours.py", engine="kernels"),
    Driver("onnxruntime-genai", "drive_onnxruntime.py", "onnxruntime_genai"),
    Driver("openvino-genai", "drive_openvino.py", "openvino_genai"),
    Driver("transformers", "drive_transformers.py", precisions=("fp32",)),
)


@dataclass(frozen=True)
class Answered:
    """One request."""

    token: float
    """Microseconds of a token behind the first ones."""
    total: float
    """Of the whole request, by its new tokens."""
    tokens: tuple[int, ...]
    per_round: float | None
    framework: float | None

    @classmethod
    def of(cls, answer: dict[str, Any], clock: int) -> Answered:
        """From a driver's line."""
        count, first = len(answer["tokens"]), answer["first"]
        behind = answer["total"][clock] - answer["first_at"][clock]
        return cls(
            token=1e6 * behind / max(1, count - first),
            total=1e6 * answer["total"][clock] / max(1, count),
            tokens=tuple(answer["tokens"]),
            per_round=answer["per_round"],
            framework=answer["framework_us"],
        )


class Process:
    """A driver that runs."""

    def __init__(self, driver: Driver, arguments: argparse.Namespace, precision: str) -> None:
        self.name = driver.name
        where = driver.environment
        python = sys.executable if where is None else str(environment(arguments.envs, where))
        options = {
            "target": arguments.target, "draft": arguments.draft, "precision": precision,
            "threads": arguments.threads, "work": arguments.work, "engine": driver.engine,
        }  # fmt: skip
        flags = [w for key, value in options.items() if value for w in (f"--{key}", str(value))]
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115  closed with the process
        self._process = subprocess.Popen(
            [python, str(DRIVERS / driver.script), *flags],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True,
            env=OFFLINE | {"PATH": "/usr/bin:/bin", "HOME": str(Path.home())},
        )  # fmt: skip
        self.modes: list[str] = self._line()["modes"]

    def ask(self, mode: str, prompt: list[int], new_tokens: int, clock: int) -> Answered:
        """One request."""
        assert self._process.stdin is not None
        request = {"mode": mode, "prompt": prompt, "new_tokens": new_tokens}
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return Answered.of(self._line(), clock)

    def close(self) -> None:
        """Let it end."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()
        self._errors.close()

    def _line(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            self._errors.seek(0)
            words = self._errors.read().strip().splitlines()
            raise PeerError(f"{self.name}: {words[-1] if words else 'it ended'}")
        answer: dict[str, Any] = json.loads(line)
        return answer


@dataclass(frozen=True)
class Row:
    """One driver and mode on one set of prompts."""

    prompts: str
    precision: str
    driver: str
    mode: str
    token: float
    """Microseconds, median over prompts."""
    total: float
    of_peer: float | None
    """Speed over the fastest peer's plain decoding; the interval is that of 95 %."""
    interval: tuple[float, float] | None
    per_round: float | None
    floor: float | None
    framework: float | None
    same: int
    """Prompts on which the tokens are those of the driver's own plain decoding."""
    count: int


@dataclass
class Verdicts:
    """What is wanted, and what there is: one line each."""

    lines: list[tuple[str, float, float]] = field(default_factory=list)

    def add(self, what: str, value: float, wanted: float) -> None:
        """`value` should be at least `wanted`."""
        self.lines.append((what, value, wanted))


def measure(
    processes: list[Process], prompts: list[list[int]], new_tokens: int, clock: int
) -> dict[Key, list[Answered]]:
    """All modes of all processes on all prompts, in random order within each prompt."""
    asked = [(process, mode) for process in processes for mode in process.modes]
    for process, mode in asked:  # what is made at a first request is not timed
        process.ask(mode, prompts[0][: len(prompts[0]) // 2], new_tokens, clock)
    found: dict[Key, list[Answered]] = {(process.name, mode): [] for process, mode in asked}
    order = random.Random(0)
    for prompt in prompts:
        order.shuffle(asked)
        for process, mode in asked:
            answer = process.ask(mode, prompt, new_tokens, clock)
            found[process.name, mode].append(answer)
    return found


def rows(name: str, precision: str, found: dict[Key, list[Answered]]) -> Iterator[Row]:
    """A row for each driver and mode, the best first."""
    peer = fastest(found, ours=False, plain=True)
    for (driver, mode), answers in sorted(found.items(), key=lambda item: speed(item[1])):
        plain, token = found[driver, "plain"], speed(answers)
        ratio = None if peer is None else ratios(found[peer], answers)
        per_round = [a.per_round for a in answers if a.per_round is not None]
        framework = [a.framework for a in answers if a.framework is not None]
        each = float(np.mean(per_round)) if per_round else None
        yield Row(
            prompts=name,
            precision=precision,
            driver=driver,
            mode=mode,
            token=token,
            total=float(np.median([answer.total for answer in answers])),
            of_peer=None if ratio is None else ratio[0],
            interval=None if ratio is None else ratio[1:],
            per_round=each,
            floor=None if each is None else speed(plain) / each,
            framework=float(np.median(framework)) if framework else None,
            same=sum(a.tokens == b.tokens for a, b in zip(answers, plain, strict=True)),
            count=len(answers),
        )


def speed(answers: list[Answered]) -> float:
    """Microseconds of a token, median over prompts."""
    return float(np.median([answer.token for answer in answers]))


def ratios(slow: list[Answered], fast: list[Answered]) -> tuple[float, float, float]:
    """How many times faster, median over prompts, with its interval by the bootstrap."""
    return median_of(np.array([a.token / b.token for a, b in zip(slow, fast, strict=True)]))


def fastest(found: dict[Key, list[Answered]], *, ours: bool, plain: bool) -> Key | None:
    """The fastest of ours or of the peers', plain or speculative."""
    fit = [key for key in found
           if key[0].startswith("ours") == ours and (key[1] == "plain") == plain]  # fmt: skip
    return min(fit, key=lambda key: speed(found[key]), default=None)


def judge(name: str, found: dict[Key, list[Answered]], verdicts: Verdicts) -> None:
    """What is wanted of one set at one precision."""
    best = {(ours, plain): fastest(found, ours=ours, plain=plain)
            for ours in (True, False) for plain in (True, False)}  # fmt: skip
    mine, guessed = best[True, True], best[True, False]
    assert mine is not None
    assert guessed is not None
    theirs, drafted = best[False, True], best[False, False]

    def times(slow: Key, fast: Key) -> float:
        return ratios(found[slow], found[fast])[0]

    if theirs is not None:
        verdicts.add(f"{name}: plain over {theirs[0]}", times(theirs, mine), PLAIN)
        kind = name.split()[0]
        if kind in WANTED:
            what = f"{name}: {guessed[0]} {guessed[1]} over plain {theirs[0]}"
            verdicts.add(what, times(theirs, guessed), WANTED[kind])
        kernels = [key for key in found if key[0] == "ours/kernels" and key[1] != "plain"]
        if kernels and kind in WITH_KERNELS:
            key = min(kernels, key=lambda key: speed(found[key]))
            what = f"{name}: {key[0]} {key[1]} over plain {theirs[0]}"
            verdicts.add(what, times(theirs, key), WITH_KERNELS[kind])
    if drafted is not None:
        what = f"{name}: {guessed[0]} {guessed[1]} over {drafted[0]} {drafted[1]}"
        verdicts.add(what, times(drafted, guessed), SPECULATION)
    for key in [key for key in found if key[0].startswith("ours") and key[1] != "plain"]:
        plain = (key[0], "plain")
        verdicts.add(f"{name}: {key[0]} {key[1]} over its plain", times(plain, key), NEVER_UNDER)


def read_prompts(arguments: argparse.Namespace) -> dict[str, list[list[int]]]:
    """Tokens by set: the last ones of each prompt that leave room for the new tokens."""
    room = arguments.context - arguments.new_tokens
    if arguments.prompts is None:
        one = [3 + 7919 * i % 4000 for i in range(16)]
        return {"repeats": [[(t + i) % 4000 + 3 for t in one] * 4 for i in range(arguments.count)]}
    tokenizer = tokenizers.Tokenizer.from_file(str(Path(arguments.target) / "tokenizer.json"))
    found: dict[str, list[list[int]]] = {}
    for file in sorted(arguments.prompts.glob("*.jsonl")):
        if arguments.sets and file.stem not in arguments.sets:
            continue
        texts = [json.loads(line)["prompt"] for line in file.read_text().splitlines()]
        picked = random.Random(arguments.seed).sample(texts, min(arguments.count, len(texts)))
        found[file.stem] = [tokenizer.encode(text).ids[-room:] for text in picked]
    return found


def run(arguments: argparse.Namespace) -> tuple[list[Row], Verdicts, dict[str, str]]:
    """Everything."""
    table, verdicts, failed = [], Verdicts(), {}
    sets = read_prompts(arguments)
    for precision in arguments.precision:
        processes = []
        for driver in DRIVEN:
            wanted = arguments.drivers is None or driver.name in arguments.drivers
            if precision in driver.precisions and wanted:
                print(f"starting {driver.name} {precision}", file=sys.stderr)
                try:
                    processes.append(Process(driver, arguments, precision))
                except PeerError as error:
                    failed[f"{driver.name} {precision}"] = str(error)
        for name, prompts in sets.items():
            print(f"asking {name} {precision}", file=sys.stderr)
            found = measure(processes, prompts, arguments.new_tokens, CLOCKS[arguments.clock])
            made = list(rows(name, precision, found))
            print(text(made, Verdicts(), {}), file=sys.stderr)  # what there is if it is stopped
            table += made
            judge(f"{name} {precision}", found, verdicts)
        for process in processes:
            process.close()
    return table, verdicts, failed


def text(table: list[Row], verdicts: Verdicts, failed: dict[str, str]) -> str:
    """The report for people."""
    lines, group = [], ("", "")
    for row in table:
        if group != (row.prompts, row.precision):
            group = (row.prompts, row.precision)
            lines.append(
                f"\n{row.prompts}, {row.precision}: {row.count} prompts\n"
                f"{'':28} us/token  with prompt  of peer          tokens/pass  floor  loop  same"
            )
        low, high = row.interval or (0.0, 0.0)
        lines.append(
            f"{row.driver + ' ' + row.mode:28} {row.token:8.0f} {row.total:12.0f}"
            f"  {row.of_peer or 0:4.2f} [{low:4.2f}, {high:4.2f}]"
            + (
                f" {row.per_round:11.2f} {row.floor:7.0f}"
                if row.per_round and row.floor
                else " " * 20
            )
            + (f" {row.framework:5.0f}" if row.framework else " " * 6)
            + f" {row.same:4}/{row.count}"
        )
    lines.append("")
    for what, value, wanted in verdicts.lines:
        lines.append(
            f"{'holds ' if value >= wanted else 'misses'} {value:5.2f} >= {wanted}  {what}"
        )
    return "\n".join(lines + [f"{name}: {reason}" for name, reason in failed.items()])


def parser() -> argparse.ArgumentParser:
    """The options."""
    made = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--target", type=Path)
    made.add_argument("--draft", type=Path)
    made.add_argument("--prompts", type=Path)
    made.add_argument("--sets", nargs="+", help="of the prompts; default: all")
    made.add_argument("--drivers", nargs="+", help=", ".join(driver.name for driver in DRIVEN))
    made.add_argument("--precision", nargs="+", default=["fp32", "int8", "int4"])
    made.add_argument("--count", type=int, default=16, help="prompts of each set")
    made.add_argument("--new-tokens", type=int, default=96)
    made.add_argument("--context", type=int, default=512, help="tokens of a prompt and its answer")
    made.add_argument("--threads", type=int, default=1)
    made.add_argument("--clock", default="wall", choices=list(CLOCKS))
    made.add_argument("--seed", type=int, default=0, help="of which prompts are picked")
    made.add_argument("--envs", type=Path, default=Path(tempfile.gettempdir()) / "peers")
    made.add_argument("--work", type=Path, help="folder in which converted models stay")
    made.add_argument("--json", action="store_true")
    return made


def main() -> int:
    """Print the table or one JSON document; exit code 1 where something wanted is missed."""
    arguments = parser().parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        arguments.work = (arguments.work or Path(scratch)).resolve()
        arguments.work.mkdir(parents=True, exist_ok=True)
        arguments.target = (arguments.target or random_llama(Path(scratch) / "llama")).resolve()
        arguments.draft = arguments.draft.resolve() if arguments.draft else None
        table, verdicts, failed = run(arguments)
    if arguments.json:
        report = {"clock": arguments.clock, "threads": arguments.threads, "failed": failed,
                  "rows": [asdict(row) for row in table], "wanted": verdicts.lines}  # fmt: skip
        print(json.dumps(report, indent=1))
    else:
        print(text(table, verdicts, failed))
    return int(any(value < wanted for _, value, wanted in verdicts.lines))


if __name__ == "__main__":
    sys.exit(main())
