"""Our own artifacts, compiled here and run in this environment."""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Mapping
from pathlib import Path

from protocol import Answer, Marks, Mode, serve

import sdk

KERNELS = "kernels"
"""ONNX Runtime with our kernels in place of its own."""
PRECISIONS = {"fp32": "fp32", "int8": "w8", "int4": "int4"}
WEIGHTS = ("config.json", "generation_config.json", "model.safetensors")


def compiled(model: str, name: str, options: argparse.Namespace) -> Path:
    """The artifact of one model; one that is there already is kept.

    Without the tokenizer: no driver makes text of its tokens.
    """
    precision, native = PRECISIONS[options.precision], options.engine == KERNELS
    engine = "onnxruntime" if native else options.engine
    path = Path(options.work) / f"ours-{name}-{options.engine}-{precision}.edge"
    if path.is_dir():
        return path
    folder = path.with_suffix(".hf")
    folder.mkdir(exist_ok=True)
    for file in WEIGHTS:
        shutil.copy(Path(model) / file, folder / file)
    sdk.compile(
        folder,
        task="text-generation",
        target=f"{engine}:cpu:{precision}",
        attention="kernel" if native else "engine",
        kernels="native" if native else "auto",
        output=path,
        threads=options.threads,
        waive=["slower", "fidelity"],
    )
    return path


def modes(options: argparse.Namespace) -> Mapping[str, Mode]:
    """Plain, and with each drafter under the adaptive budget."""
    target = sdk.load(compiled(options.target, "target", options), threads=options.threads)
    drafters: dict[str, str | sdk.Model | None] = {
        "plain": None, "lookup": "prompt_lookup", "trigram": "trigram", "fused": "fused",
    }  # fmt: skip
    if options.draft:
        drafters["draft"] = sdk.load(
            compiled(options.draft, "draft", options), threads=options.threads
        )

    def mode(drafter: str | sdk.Model | None) -> Mode:
        def ask(prompt: list[int], new_tokens: int, marks: Marks) -> Answer:
            target.language.cached.rollback(0)  # the other drivers read each prompt, too
            rounds, first = 0, 0

            def watch() -> bool:
                """Called before each round."""
                nonlocal rounds, first
                if rounds == 1:
                    first = stream.result.stats.new_tokens
                    marks.token()
                rounds += 1
                return False

            stream = target.stream(
                prompt, drafter=drafter, max_new_tokens=new_tokens, eos=(), cancelled=watch
            )
            for _ in stream:
                pass
            result = stream.result
            return Answer(
                tokens=list(result.tokens),
                per_round=result.stats.mean_accepted_tokens,
                first=first or len(result.tokens),
                framework_us=1e3 * result.stats.overhead_ms,
            )

        return ask

    return {name: mode(drafter) for name, drafter in drafters.items()}


if __name__ == "__main__":
    serve(modes)
