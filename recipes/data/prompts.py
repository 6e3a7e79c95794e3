"""Prompts to measure generation on: held-out code, edits of it, programming tasks, questions.

`python -m sdk.recipes.data.prompts RUN OUTPUT [--benchmarks FOLDER]` writes a JSON-lines file of
each kind for the models of a run of the recipe `causal_lm`; lines have `id`, `prompt` and
`reference`, the text that really follows. The folder of benchmarks is the one that holds
`humaneval/HumanEval.jsonl.gz` and `spec_bench/question.jsonl`; without it those two are left out.
"""

from __future__ import annotations

import argparse
import gzip
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

from sdk.extras import require
from sdk.recipes.data import text
from sdk.recipes.data.exercises import HEADER, renamed, renaming
from sdk.recipes.data.text import Document

if TYPE_CHECKING:
    from tokenizers import Tokenizer

TRIES = 200


@dataclass(frozen=True)
class Lengths:
    """Tokens of prompts, as shares of the model's context: what they ask for must fit in, too."""

    context: int

    @property
    def completion(self) -> tuple[int, int]:
        """Least and most tokens of the code to be gone on from."""
        return self.context // 4, self.context // 2

    @property
    def edited(self) -> tuple[int, int]:
        """Least and most tokens of the lines to be copied."""
        return self.context * 3 // 16, self.context * 5 // 16

    @property
    def following(self) -> int:
        """Tokens that are generated, and shown as what really follows."""
        return self.context // 4

    @property
    def most(self) -> int:
        """Tokens of any prompt."""
        return self.context * 11 // 16


@dataclass(frozen=True)
class Asked:
    """A prompt, and what follows it in the source, where something does."""

    id: str
    prompt: str
    reference: str = ""


def completions(
    texts: Sequence[Document], tokenizer: Tokenizer, lengths: Lengths, count: int, seed: int = 0
) -> Iterator[Asked]:
    """Code from the beginning of a line at random; it ends anywhere."""
    random, following = Random(seed), lengths.following
    for number in range(count):
        for _ in range(TRIES):
            document = random.choice(texts)
            length = random.randint(*lengths.completion)
            ids = tokenizer.encode(_from_some_line(document.text, random)).ids
            if len(ids) > length + following:
                name = f"completion-{number:03d}-{document.group}"
                after = tokenizer.decode(ids[length : length + following])
                yield Asked(name, tokenizer.decode(ids[:length]), after)
                break


def edits(
    texts: Sequence[Document], tokenizer: Tokenizer, lengths: Lengths, count: int, seed: int = 0
) -> Iterator[Asked]:
    """Lines of code, the header of an exercise, and the first line of the copy to be made."""
    random = Random(seed + 1)
    for number in range(count):
        for _ in range(TRIES):
            document = random.choice(texts)
            ids = tokenizer.encode(_from_some_line(document.text, random)).ids
            shown = _whole_lines(tokenizer.decode(ids[: random.randint(*lengths.edited)]))
            named = renaming(shown, random)
            if named is None or len(tokenizer.encode(shown).ids) < lengths.edited[0] // 2:
                continue
            copy = renamed(shown, *named).splitlines(keepends=True)
            head = HEADER.format(old=named[0], new=named[1])
            name = f"edit-{number:03d}-{document.group}"
            yield Asked(name, shown + head + copy[0], "".join(copy[1:]))
            break


def programming_tasks(folder: Path) -> Iterator[Asked]:
    """The prompts of HumanEval."""
    with gzip.open(folder / "humaneval" / "HumanEval.jsonl.gz", "rt", encoding="utf-8") as file:
        for line in file:
            task = json.loads(line)
            yield Asked(task["task_id"], task["prompt"], task["canonical_solution"])


def questions(folder: Path, tokenizer: Tokenizer, lengths: Lengths) -> Iterator[Asked]:
    """The first turns of Spec-Bench's questions; of a long one, its end."""
    for line in (folder / "spec_bench" / "question.jsonl").read_text().splitlines():
        question = json.loads(line)
        ids = tokenizer.encode(question["turns"][0]).ids[-lengths.most :]
        name = f"{question['category']}-{question['question_id']}"
        yield Asked(name, tokenizer.decode(ids))


def write(asked: Iterable[Asked], file: Path) -> int:
    """One line of JSON for each; returns how many."""
    lines = [json.dumps(asdict(one)) for one in asked]
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return len(lines)


def read(file: Path) -> list[Asked]:
    """What `write` wrote."""
    return [Asked(**json.loads(line)) for line in file.read_text(encoding="utf-8").splitlines()]


def held_out(settings: Mapping[str, Any]) -> list[Document]:
    """The texts that a run of these settings did not learn from."""
    found = text.documents(settings["data"], settings["pattern"])
    return text.split(found, every=settings["hold_out_every"])[1]


def _from_some_line(code: str, random: Random) -> str:
    lines = code.splitlines(keepends=True)
    start = random.randrange(max(1, len(lines)))
    return "".join(lines[start : start + 120])


def _whole_lines(code: str) -> str:
    return code[: code.rfind("\n") + 1]


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path, help="the folder <output>.run of the recipe")
    parser.add_argument("output", type=Path, help="where the files go")
    parser.add_argument("--count", type=int, default=64, help="completions, and edits")
    parser.add_argument("--benchmarks", type=Path, help="the folder of HumanEval and Spec-Bench")
    options = parser.parse_args(arguments)
    library = require("tokenizers", purpose="Prompts for a language model")
    tokenizer = library.Tokenizer.from_file(str(options.run / "tokenizer.json"))
    settings = json.loads((options.run / "settings.json").read_text())
    texts, lengths = held_out(settings), Lengths(settings["context"])
    sets = {
        "completion": completions(texts, tokenizer, lengths, options.count),
        "edit": edits(texts, tokenizer, lengths, options.count),
    }
    if options.benchmarks:
        sets["humaneval"] = programming_tasks(options.benchmarks)
        sets["spec_bench"] = questions(options.benchmarks, tokenizer, lengths)
    for name, asked in sets.items():
        print(f"{name}: {write(asked, options.output / f'{name}.jsonl')} prompts")


if __name__ == "__main__":
    main()
