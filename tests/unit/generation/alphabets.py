"""Small tokenizers whose tokens' bytes are known: byte-level as GPT-2's, and sentencepiece-like."""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from typing import Any

EOS = "</s>"
TEXTS = ('{"name": "Tom", "age": 12, "tags": ["red", "blue"], "on": true, "x": null}', "cat car")


@dataclass(frozen=True)
class Alphabet:
    """A `tokenizer.json` and what its tokens spell; the last one ends an output."""

    text: str
    spelled: tuple[bytes, ...]

    @property
    def eos(self) -> int:
        """The token that ends an output."""
        return len(self.spelled) - 1

    def spell(self, tokens: list[int]) -> bytes:
        """What tokens say; the end says nothing."""
        return b"".join(self.spelled[token] for token in tokens if token != self.eos)


def _tokenizer(vocabulary: list[str], merges: list[list[str]], **parts: Any) -> str:
    end = {"id": len(vocabulary), "content": EOS, "special": True, "normalized": False}
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip"), False)
    model = {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": parts.pop("byte_fallback", False),
        "vocab": {token: i for i, token in enumerate([*vocabulary, EOS])},
        "merges": merges,
    }
    empty = dict.fromkeys(("truncation", "padding", "normalizer", "pre_tokenizer"))
    return json.dumps(
        {"version": "1.0", **empty, "post_processor": None, "added_tokens": [end | flags]}
        | parts
        | {"model": model}
    )


def byte_level(*words: str) -> Alphabet:
    """Only these tokens, which are ASCII without spaces; longer ones are merges of their halves."""
    merges = [[word[:-1], word[-1]] for word in words if len(word) > 1]
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    level |= {"use_regex": False}
    text = _tokenizer(list(words), merges, pre_tokenizer=level, decoder=level)
    return Alphabet(text, (*(word.encode() for word in words), b""))


def sentencepiece(*words: str) -> Alphabet:
    """All bytes, these tokens, in which `▁` is a space, and the letters that they are made of."""
    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    merges = [[word[:-1], word[-1]] for word in words if len(word) > 1]
    words = (*sorted({letter for word in words for letter in word} - {*words}), *words)
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    back = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
    text = _tokenizer(
        [*byte_tokens, *words],
        merges,
        byte_fallback=True,
        normalizer=replace,
        decoder={"type": "Sequence", "decoders": [back, {"type": "ByteFallback"}]},
    )
    spelled = [bytes([byte]) for byte in range(256)]
    return Alphabet(text, (*spelled, *(word.replace("▁", " ").encode() for word in words), b""))


@functools.cache
def trained() -> Alphabet:
    """All bytes and some pieces of JSON, with the byte alphabet of GPT-2."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=alphabet, show_progress=False, min_frequency=1
    )
    made.train_from_iterator(TEXTS * 3, trainer)
    made.add_special_tokens([EOS])
    letters = _gpt2_letters()
    tokens = [made.id_to_token(i) for i in range(made.get_vocab_size() - 1)]
    spelled = (bytes(letters[letter] for letter in token) for token in tokens)
    return Alphabet(made.to_str(), (*spelled, b""))


def _gpt2_letters() -> dict[str, int]:
    """Printable Latin-1 stands for itself, the other bytes for the letters from U+0100 on."""
    shown = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return {chr(byte): byte for byte in shown} | {chr(256 + i): b for i, b in enumerate(hidden)}
