"""What the kernels bring to generation: one target with and without them, request by request.

    python tests/bench/kernels_generation.py --target FOLDER --prompts FOLDER [--precision int4]
        [--engine onnxruntime] [--count 8] [--tokens 64] [--threads 1] [--json]

FOLDER of `--target` is a Hugging Face causal language model with its tokenizer; `--prompts` holds
`<set>.jsonl` files with a `prompt` a line. Both builds are asked the same prompts in turn, plain
and with each drafter that needs no model, and the tokens are compared. Times are what the process
computed, behind the first token; ratios are medians over prompts with their quartiles.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

import sdk

MODES = (None, "prompt_lookup", "trigram", "fused")
FORMS: dict[str, dict[str, str]] = {
    "without": {},
    "with": {"attention": "kernel", "kernels": "native"},
}


def main() -> None:
    """Compile both, ask both, print the ratios."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--target", type=Path, required=True)
    parser.add_argument("--prompts", type=Path, required=True)
    parser.add_argument("--sets", nargs="+", default=["completion", "edit"])
    parser.add_argument("--precision", default="int4")
    parser.add_argument("--engine", default="onnxruntime")
    parser.add_argument("--count", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        models = {form: _compiled(arguments, Path(folder), form) for form in FORMS}
        for model in models.values():  # measures the cost of width
            _ask(model, "warm up", arguments.tokens, "prompt_lookup")
        report = {name: _measured(models, name, arguments) for name in arguments.sets}
    print(json.dumps(report, indent=1) if arguments.json else _table(report))


def _compiled(arguments: Any, folder: Path, form: str) -> sdk.Model:
    target = f"{arguments.engine}:cpu:{arguments.precision}"
    options: dict[str, Any] = FORMS[form]
    output = folder / f"{form}.edge"
    sdk.compile(
        arguments.target, task="text-generation", target=target, output=output,
        waive=["slower", "fidelity"], **options,
    )  # fmt: skip
    return sdk.load(output, threads=arguments.threads)


def _ask(model: sdk.Model, prompt: str, tokens: int, mode: str | None) -> tuple[float, Any]:
    """Seconds of the process behind the first token, and the answer."""
    list(model.stream(prompt, max_new_tokens=1))  # the prompt is in the cache then
    start = time.process_time()
    answer = model.generate(prompt, max_new_tokens=tokens, drafter=mode)
    return time.process_time() - start, answer


def _measured(models: dict[str, sdk.Model], name: str, arguments: Any) -> dict[str, Any]:
    lines = (arguments.prompts / f"{name}.jsonl").read_text().splitlines()[: arguments.count]
    speeds: dict[str, list[list[float]]] = {str(mode): [] for mode in MODES}
    same, asked = 0, 0
    for index, line in enumerate(lines):
        prompt = json.loads(line)["prompt"]
        for mode in MODES:
            order = list(models)[:: 1 if index % 2 else -1]
            got = {form: _ask(models[form], prompt, arguments.tokens, mode) for form in order}
            rates = [len(got[form][1].tokens) / got[form][0] for form in ("without", "with")]
            speeds[str(mode)].append(rates)
            same += got["with"][1].tokens == got["without"][1].tokens
            asked += 1
    rows: dict[str, Any] = {}
    for mode, rates_of in speeds.items():
        rates = np.array(rates_of)
        ratios = np.quantile(rates[:, 1] / rates[:, 0], (0.25, 0.5, 0.75))
        rows[mode] = {
            "without": float(np.median(rates[:, 0])),
            "with": float(np.median(rates[:, 1])),
            "ratio": ratios.round(3).tolist(),
        }
    return {"rows": rows, "same": f"{same}/{asked}"}


def _table(report: dict[str, Any]) -> str:
    lines = []
    for name, values in report.items():
        lines.append(f"{name}: tokens a second of one process; same tokens {values['same']}")
        for mode, row in values["rows"].items():
            low, middle, high = row["ratio"]
            lines.append(
                f"  {mode:14} without {row['without']:7.1f}  with {row['with']:7.1f}"
                f"  ratio {middle:.2f} [{low:.2f}, {high:.2f}]"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
