"""How a driver is asked: one JSON line in, one out. It imports nothing but the standard library."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field


@dataclass
class Marks:
    """When the first and the last token came: seconds since the request, by wall and by CPU."""

    start: tuple[float, float] = field(default_factory=lambda: _now())
    first: tuple[float, float] | None = None

    def token(self) -> None:
        """A token came."""
        if self.first is None:
            self.first = _now()

    def report(self) -> dict[str, list[float]]:
        """Wall and CPU seconds to the first token and to the end."""
        end, first = _now(), self.first or _now()
        return {
            "first_at": [after - before for after, before in zip(first, self.start, strict=True)],
            "total": [after - before for after, before in zip(end, self.start, strict=True)],
        }


@dataclass(frozen=True)
class Answer:
    """The new tokens of a request."""

    tokens: list[int]
    per_round: float | None = None
    """Mean tokens of a pass of the target, where the driver is told."""
    first: int = 1
    """Tokens that had come at the first mark."""
    framework_us: float | None = None
    """All but the engine's passes, per round."""


Mode = Callable[[list[int], int, Marks], Answer]


def _now() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def options() -> argparse.Namespace:
    """What each driver is started with."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--target", required=True)
    parser.add_argument("--draft")
    parser.add_argument("--precision", required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--work", required=True, help="folder for what is made of the models")
    parser.add_argument("--engine", default="")
    return parser.parse_args()


def serve(make: Callable[[argparse.Namespace], Mapping[str, Mode]]) -> None:
    """Say which modes there are, then answer requests until the input ends."""
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    modes = make(options())
    print(json.dumps({"modes": list(modes)}), file=channel, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        marks = Marks()
        answer = modes[request["mode"]](request["prompt"], request["new_tokens"], marks)
        print(json.dumps({**vars(answer), **marks.report()}), file=channel, flush=True)
