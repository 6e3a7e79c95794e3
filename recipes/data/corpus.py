"""The texts of a language model: read, held out in part, and written down as rows of tokens."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from random import Random
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from sdk.errors import InputError
from sdk.progress import Report
from sdk.recipes.data import prompts, text, tokens
from sdk.recipes.data.text import Document
from sdk.recipes.data.tokens import Packing
from sdk.recipes.workspace import Workspace

if TYPE_CHECKING:
    from tokenizers import Tokenizer


class Settings(Protocol):
    """What a recipe says of its texts."""

    @property
    def data(self) -> str: ...
    @property
    def pattern(self) -> str: ...
    @property
    def most_bytes(self) -> int: ...
    @property
    def group_bytes(self) -> int: ...
    @property
    def hold_out_every(self) -> int: ...
    @property
    def tokenizer_bytes(self) -> int: ...
    @property
    def exercises(self) -> int: ...
    @property
    def vocabulary(self) -> int: ...
    @property
    def context(self) -> int: ...
    @property
    def prompts(self) -> int: ...
    @property
    def seed(self) -> int: ...


@dataclass
class Corpus:
    """The texts as rows of tokens, made once."""

    settings: Settings
    space: Workspace
    progress: Report

    def make(self) -> dict[str, Any]:
        """Write tokenizer.json, train.npy and test.npy; returns what is in them."""
        return self.space.once("corpus", self._make)

    def _make(self) -> dict[str, Any]:
        settings = self.settings
        self.progress("read the texts", 0, 1)
        found = list(text.documents(settings.data, settings.pattern))
        if not found:
            raise InputError(
                "There is no text to learn from.",
                expected=f"files {settings.pattern} of UTF-8 text",
                got=settings.data,
            )
        learnt, held = text.split(found, every=settings.hold_out_every)
        if not held:
            raise InputError(
                "Nothing can be held out of one group of texts.",
                expected="two groups at least: packages, or entries of the folder",
                got=found[0].group,
            )
        learnt = list(self._limited(learnt))
        self.progress("train the tokenizer", 0, 1)
        tokenizer = tokens.new_tokenizer(self._sample(learnt), settings.vocabulary)
        tokenizer.save(str(self.space.folder / "tokenizer.json"))
        rows = {
            name: self._rows(name, some, tokenizer, exercises)
            for name, some, exercises in (
                ("train", learnt, settings.exercises), ("test", held, 0)
            )
        }  # fmt: skip
        self._ask(held, tokenizer)
        return {name: _described(some) | {"rows": rows[name]}
                for name, some in (("train", learnt), ("test", held))}  # fmt: skip

    def _ask(self, held: list[Document], tokenizer: Tokenizer) -> None:
        """Prompts from the held-out texts."""
        folder, count = self.space.folder / "prompts", self.settings.prompts
        lengths = prompts.Lengths(self.settings.context)
        for make in (prompts.completions, prompts.edits):
            prompts.write(make(held, tokenizer, lengths, count), folder / f"{make.__name__}.jsonl")

    def _rows(self, name: str, texts: list[Document], tokenizer: Tokenizer, exercises: int) -> int:
        packing = Packing(self.settings.context, exercises, self.settings.seed)
        rows = tokens.pack(texts, tokenizer, packing, partial(self.progress, f"tokens of {name}"))
        if name == "test":  # figures of the first rows are of all texts alike
            np.random.default_rng(self.settings.seed).shuffle(rows)
        np.save(self.space.folder / f"{name}.npy", rows)
        return len(rows)

    def _limited(self, texts: list[Document]) -> Iterator[Document]:
        """Texts drawn at random, within the limits of `group_bytes` and `most_bytes`."""
        order, sizes, total = list(texts), dict.fromkeys((t.group for t in texts), 0), 0
        Random(self.settings.seed).shuffle(order)
        for one in order:
            size = len(one.text)
            if self.settings.group_bytes and sizes[one.group] + size > self.settings.group_bytes:
                continue
            if self.settings.most_bytes and total + size > self.settings.most_bytes:
                continue
            sizes[one.group] += size
            total += size
            yield one

    def _sample(self, texts: list[Document]) -> Iterator[str]:
        left = self.settings.tokenizer_bytes
        for one in texts:  # which are in random order
            left -= len(one.text)
            if left < 0:
                return
            yield one.text


def _described(texts: list[Document]) -> dict[str, Any]:
    return {
        "texts": len(texts),
        "bytes": sum(len(one.text.encode()) for one in texts),
        "groups": sorted({one.group for one in texts}),
    }
