"""Texts as rows of tokens: a byte-level tokenizer, and a corpus on disk that a stage draws from."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from sdk.errors import InputError
from sdk.extras import require
from sdk.recipes.data.exercises import exercise
from sdk.recipes.data.text import Document
from sdk.signature import Array

if TYPE_CHECKING:
    from tokenizers import Tokenizer

END = "<|endoftext|>"
LEAST_VOCABULARY, MOST_VOCABULARY = 300, 1 << 16
BATCH = 256


def new_tokenizer(texts: Iterable[str], vocabulary: int) -> Tokenizer:
    """Byte-level byte pair encoding of `texts` with one special token, `END`, whose number is 0."""
    if not LEAST_VOCABULARY <= vocabulary <= MOST_VOCABULARY:
        raise InputError(
            f"A vocabulary of {vocabulary} tokens is not possible.",
            expected=f"{LEAST_VOCABULARY} to {MOST_VOCABULARY}",
        )
    library = require("tokenizers", purpose="A recipe for language models")
    tokenizer = library.Tokenizer(library.models.BPE())
    tokenizer.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = library.decoders.ByteLevel()
    trainer = library.trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END],
        initial_alphabet=library.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer  # type: ignore[no-any-return]


def token_bytes(tokenizer: Tokenizer) -> Array:
    """How many bytes of text each token stands for, int64 [vocabulary]; none for `END`."""
    lengths = np.zeros(tokenizer.get_vocab_size(), np.int64)
    for text, token in tokenizer.get_vocab().items():
        lengths[token] = 0 if text == END else len(text)  # one character for each byte
    return lengths


class Rows(Dataset[tuple[Tensor, Tensor]]):
    """Rows of `context` + 1 tokens: the input is a row without its last token, the target the next
    token at each place.
    """

    def __init__(self, source: Array | Path) -> None:
        self.source = source

    @cached_property
    def rows(self) -> Array:
        """The rows; those of a file of numpy are mapped and not read."""
        return np.load(self.source, "r") if isinstance(self.source, Path) else self.source

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        inputs, targets = self.__getitems__([index])
        return inputs[0], targets[0]

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        """A whole batch at once, int64 [batch, context] twice."""
        rows = torch.from_numpy(self.rows[indices].astype(np.int64))
        return rows[:, :-1], rows[:, 1:]


@dataclass(frozen=True)
class Packing:
    """How texts become rows.

    exercises: how many rows in a thousand are exercises in editing.
    """

    context: int
    exercises: int
    seed: int


def pack(
    texts: Sequence[Document],
    tokenizer: Tokenizer,
    packing: Packing,
    progress: Callable[[int, int], None],
) -> Array:
    """uint16 [rows, context + 1]: the texts in random order, joined by `END`, cut; then exercises.

    A row's first token is the last one of the row before, so that every token is a target once.
    """
    order = list(texts)
    Random(packing.seed).shuffle(order)
    parts, done = [np.zeros(1, np.uint16)], 0
    for batch in _batches(order, BATCH):
        found = tokenizer.encode_batch_fast([text.text + END for text in batch])
        parts += [np.array(one.ids, np.uint16) for one in found]
        done += len(batch)
        progress(done, len(order))
    stream, width = np.concatenate(parts), packing.context
    count = (len(stream) - 1) // width
    if count == 0:
        raise InputError(
            "There is too little text for one row of tokens.",
            expected=f"more than {width} tokens",
            got=f"{len(stream)} tokens in {len(order)} texts",
        )
    starts = np.arange(count)[:, None] * width
    plain = stream[starts + np.arange(width + 1)]
    wanted = count * packing.exercises // (1000 - packing.exercises)
    return np.concatenate([plain, _exercises(order, tokenizer, packing, wanted)])


def _exercises(
    texts: Sequence[Document], tokenizer: Tokenizer, packing: Packing, wanted: int
) -> Array:
    rows: list[Any] = []
    width = packing.context + 1
    for batch in _batches(_edits(texts, packing.seed, 8 * wanted), BATCH):
        # A token stands for at most some tens of bytes of code; what is over is cut unread.
        encoded = tokenizer.encode_batch_fast([text[: 8 * width] for text in batch])
        rows += [np.array(one.ids[:width], np.uint16) for one in encoded if len(one.ids) >= width]
        if len(rows) >= wanted:
            break
    return np.stack(rows[:wanted]) if rows and wanted else np.zeros((0, width), np.uint16)


def _edits(texts: Sequence[Document], seed: int, tries: int) -> Iterator[str]:
    """Exercises from texts drawn at random, which end within `tries` draws."""
    random = Random(seed + 1)
    for _ in range(tries):
        made = exercise(random.choice(texts).text, random)
        if made is not None:
            yield made


def _batches(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    left = iter(items)
    while batch := list(islice(left, size)):
        yield batch
