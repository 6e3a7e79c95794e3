"""CPU microseconds of a pass by its width: a cache in place, and one that is read as a view.

    python tests/bench/decode_forms.py IN_PLACE PORTABLE [--behind 128] [--rounds 60] [--json]

IN_PLACE is a language model compiled for ONNX Runtime, PORTABLE the same one for OpenVINO, in fp32.
The portable file runs on both engines. One thread, in turn; medians and the least, since what other
work on the machine adds is no part of either.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from sdk.artifact import Artifact
from sdk.runtimes import open_session
from sdk.runtimes.generation.contracts import DecoderSession
from sdk.runtimes.generation.in_place import decoder
from sdk.target import Target

WIDTHS = (1, 2, 4, 8, 16)
FORMS = {"onnxruntime, in place": (0, "onnxruntime"), "onnxruntime, view": (1, "onnxruntime"),
         "openvino, view": (1, "openvino")}  # fmt: skip


@contextmanager
def opened(path: Path, engine: str) -> Iterator[DecoderSession]:
    """The step of an artifact on an engine that can read its file."""
    function = Artifact.open(path).manifest.function
    session = open_session(
        path / function.file, function.signature, Target.parse(engine), threads=1
    )
    yield decoder(session)
    session.close()


def measure(
    paths: list[Path], behind: int, rounds: int
) -> dict[str, dict[int, tuple[float, float]]]:
    """Median and least microseconds by form and width."""
    with ExitStack() as stack:
        sessions = {name: stack.enter_context(opened(paths[index], engine))
                    for name, (index, engine) in FORMS.items()}  # fmt: skip
        for session in sessions.values():
            session.extend([5] * behind)
        times: dict[tuple[str, int], list[float]] = {}
        for _ in range(rounds):
            for name, session in sessions.items():
                for width in WIDTHS:
                    session.forward([7] * width)
                    start = time.process_time_ns()
                    session.forward([7] * width)
                    times.setdefault((name, width), []).append(
                        (time.process_time_ns() - start) / 1e3
                    )
    return {
        name: {w: (statistics.median(times[name, w]), min(times[name, w])) for w in WIDTHS}
        for name in FORMS
    }


def main() -> None:
    """Print the table or one JSON document."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("artifacts", type=Path, nargs=2, metavar="ARTIFACT")
    parser.add_argument("--behind", type=int, default=128, help="tokens in the cache")
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    found = measure(options.artifacts, options.behind, options.rounds)
    if options.json:
        print(json.dumps(found, indent=1))
        return
    print(f"{'width':24}" + "".join(f"{width:>14}" for width in WIDTHS))
    for name, row in found.items():
        print(f"{name:24}" + "".join(f"{m:8.0f}/{least:5.0f}" for m, least in row.values()))


if __name__ == "__main__":
    main()
