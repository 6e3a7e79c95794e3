"""`edge generate`: go on from a prompt."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

import sdk
from sdk.cli.options import ArtifactPath, Device, Threads
from sdk.cli.output import Answer, say
from sdk.errors import InputError
from sdk.generating import GenerationResult

MAX_PROMPT = 16 << 20  # bytes


def generate(
    path: ArtifactPath,
    prompt: Annotated[str, Argument(help="The text to go on from; - reads it from stdin.")],
    *,
    max_new_tokens: Annotated[int, Option(min=0, help="Tokens at most.")] = 128,
    temperature: Annotated[float, Option(help="0 takes the most probable token.")] = 0.0,
    top_k: Annotated[int, Option(help="Only the k most probable tokens; 0 for all.")] = 0,
    top_p: Annotated[float, Option(help="Only the most probable tokens of this mass.")] = 1.0,
    seed: Annotated[int, Option(help="Of the sampled tokens.")] = 0,
    stop: Annotated[
        list[str] | None, Option(help="A text that ends the output. May be repeated.")
    ] = None,
    drafter: Annotated[
        str | None,
        Option(help="prompt_lookup, trigram, fused (both), or the artifact of a smaller model."),
    ] = None,
    num_draft_tokens: Annotated[
        int | None, Option(min=1, help="Tokens of a draft. Default: what pays.")
    ] = None,
    chat: Annotated[bool, Option("--chat", help="PROMPT is a user's message of a chat.")] = False,
    device: Device = "auto",
    threads: Threads = None,
) -> Answer:
    """Generate text behind PROMPT with a language model's artifact, and print it as it comes.

    Without a drafter each token costs a pass of the model; with one the tokens are the same, and
    guesses that are right cost none. How it went is told on stderr, or with --json in the document.

    Examples:

    ```console
    $ edge generate story.edge "Once upon a time"
    $ edge generate coder.edge - --drafter prompt_lookup --max-new-tokens 400 < main.py
    $ edge generate chat.edge "Who are you?" --chat --temperature 0.7 --seed 1 --json
    ```
    """
    text = _read(prompt)
    with sdk.load(path, device=device, threads=threads) as model:
        draft = sdk.load(drafter, threads=threads) if drafter and _is_artifact(drafter) else None
        stream = model.stream(
            [{"role": "user", "content": text}] if chat else text,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            seed=seed,
            stop=stop or (),
            drafter=draft or drafter,
            num_draft_tokens=num_draft_tokens,
        )
        for piece in stream:
            sys.stdout.write(piece)
            sys.stdout.flush()
        print()
        target, result = str(model.target), stream.result
        if draft is not None:
            draft.close()
    say(_summary(result))
    return Answer(document=_document(path, target, result), view=tuple)


def _read(prompt: str) -> str:
    if prompt != "-":
        return prompt
    data = sys.stdin.buffer.read(MAX_PROMPT + 1)
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise InputError("The prompt is not UTF-8 text.", got=error) from error
    if len(data) > MAX_PROMPT:
        raise InputError("The prompt is too long.", expected=f"at most {MAX_PROMPT} bytes")
    return text


def _is_artifact(drafter: str) -> bool:
    return drafter.endswith(".edge") or Path(drafter).is_dir()


def _summary(result: GenerationResult) -> str:
    stats = result.stats
    drafted = f", {stats.mean_accepted_tokens:.2f} tokens a pass" * (stats.num_drafts > 0)
    return (
        f"{stats.new_tokens} tokens, {result.finish_reason}; first after {stats.ttft_ms:.1f} ms, "
        f"{stats.tokens_per_second:.1f} a second{drafted}"
    )


def _document(path: Path, target: str, result: GenerationResult) -> dict[str, object]:
    return {
        "artifact": str(path),
        "target": target,
        "text": result.text,
        "tokens": result.tokens,
        "finish_reason": result.finish_reason,
        "lossless": result.lossless,
        "stats": result.stats.to_dict(),
    }
