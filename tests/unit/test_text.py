"""Text in whole characters, stop strings across pieces, and chats by a template."""

from __future__ import annotations

import pytest
import tokenizers
from hypothesis import given, strategies as st
from language_models import TEXT, tokenizer

from sdk.errors import CorruptArtifactError, InputError
from sdk.text import Stops, Tokenizer

BYTES: tokenizers.Tokenizer = tokenizer(merges=0)  # each byte is a token
DATA = BYTES.to_str().encode()
CHAT = [{"role": "user", "content": "Hi"}]


def test_text_comes_in_whole_characters() -> None:
    made = Tokenizer(DATA, None, {})
    tokens = made.encode(TEXT)[1:]
    following = made.following([])
    pieces = [following.add(token) for token in tokens]
    assert len(pieces) == len(TEXT.encode())
    assert "".join(pieces) == TEXT
    assert all(len(piece) <= 1 for piece in pieces)


def test_what_follows_a_context_that_ends_within_a_character() -> None:
    made = Tokenizer(DATA, None, {})
    tokens = made.encode("a😀b")[1:]
    following = made.following(tokens[:3])
    assert "".join(following.add(token) for token in tokens[3:]).endswith("b")


def test_special_tokens_are_no_text() -> None:
    made = Tokenizer(DATA, None, {})
    a, end = made.encode("a")[1], made.vocabulary()["</s>"]
    following = made.following([])
    assert [following.add(token) for token in (a, end, a)] == ["a", "", "a"]
    assert made.decode([a, end, a]) == "aa"


@given(st.text("ab", max_size=12), st.lists(st.text("ab", min_size=1, max_size=4), max_size=3),
       st.randoms(use_true_random=False))  # fmt: skip
def test_stops_see_across_pieces(text: str, strings: list[str], random: object) -> None:
    """Against a search in the whole text; nothing of a stop string is ever shown."""
    stops, shown, rest = Stops(strings), "", text
    while rest and not stops.found:
        count = random.randint(1, 3)  # type: ignore[attr-defined]
        shown, rest = shown + stops.add(rest[:count]), rest[count:]
    shown += stops.rest()
    places = [place for stop in strings if (place := text.find(stop)) >= 0]
    if not places:
        assert (shown, stops.found) == (text, False)
    else:
        assert stops.found
        ends = [text.find(stop) + len(stop) for stop in strings if stop in text]
        read = text[: len(text) - len(rest)]
        assert min(ends) <= len(read) <= min(ends) + 2
        assert shown == text[: min(read.find(s) for s in strings if s in read)]


def test_a_stop_string_is_not_empty() -> None:
    with pytest.raises(InputError, match="empty"):
        Stops(["a", ""])


def test_a_chat_by_its_template() -> None:
    template = "{{ bos_token }}{% for m in messages %}{{ m['content'] }}!{% endfor %}"
    made = Tokenizer(DATA, template, {"bos_token": "<s>"})
    assert made.encode(CHAT) == BYTES.encode("<s>Hi!", add_special_tokens=False).ids


@pytest.mark.parametrize(
    ("template", "match"),
    [
        (None, "no chat template"),
        ("{{ raise_exception('roles must alternate') }}", "alternate"),
        ("{% for %}", "does not fit"),
        ("{{ ''.__class__.__mro__ }}", "does not fit"),  # no way out of the sandbox
    ],
)
def test_chats_that_cannot_be_rendered(template: str | None, match: str) -> None:
    with pytest.raises(InputError, match=match):
        Tokenizer(DATA, template, {}).encode(CHAT)


@pytest.mark.parametrize("data", [b"", b"{", b"\xff", b"[]", DATA[:-40]])
def test_a_damaged_tokenizer(data: bytes) -> None:
    with pytest.raises(CorruptArtifactError, match="tokenizer"):
        Tokenizer(data, None, {})
