"""A chat that goes on: its messages, and a cache that holds what both sides have said."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Unpack

from sdk.generating import Asked, GenerationResult, LanguageModel, Stream, split


class Conversation:
    """Messages with `role` and `content`; one request at a time, as for any cache.

    Other requests of the model run beside it: they have another cache.
    """

    def __init__(
        self,
        language: LanguageModel,
        messages: Sequence[Mapping[str, str]] = (),
        *,
        drafter: Any = None,
    ) -> None:
        language.check_chat()
        self.messages = [dict(message) for message in messages]
        self._language, self._drafter = language, drafter

    def say(self, text: str, *, role: str = "user", **request: Unpack[Asked]) -> GenerationResult:
        """Add a message and the model's answer, whole or cut short; return that."""
        stream = self._answer([*self.messages, {"role": role, "content": text}], request)
        for _ in stream:
            pass
        self.messages += [
            {"role": role, "content": text},
            {"role": "assistant", "content": stream.result.text},
        ]
        return stream.result

    def _answer(self, messages: Sequence[Mapping[str, str]], request: Asked) -> Stream:
        request = {"drafter": self._drafter, **request}
        return self._language.start(messages, *split(request))
