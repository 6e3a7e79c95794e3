"""What `Model.predict` adds to the engine's own call, on models of well under a millisecond.

    python tests/bench/overhead.py [--runs 2000] [--threads 1] [--json]

`engine` is the fastest call that the engine's own Python package offers for the same arrays and
that leaves the caller with a result of its own: InferenceSession.run for ONNX Runtime, and for
OpenVINO one infer request with shared input and output whose result is copied. Both are timed in
turn, call by call, in one run. `difference` is the difference of the medians; `paired` is the
median of the differences of neighbouring calls, which a slow moment of the machine moves less.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

import sdk
from sdk.signature import Array
from sdk.timing import Latency, sample

sys.path.insert(0, str(Path(__file__).parents[1]))  # for cases.py, when run as a program
from cases import mobile_block

GOAL = 15.0  # microseconds
ENGINES = ("onnxruntime", "openvino")


@dataclass(frozen=True)
class Overhead:
    """Microseconds of one model on one engine."""

    model: str
    engine: str
    threads: int
    direct: Latency
    predict: Latency
    difference: float
    paired: float

    @property
    def ok(self) -> bool:
        """Whether the promise is kept."""
        return self.difference <= GOAL


def models() -> dict[str, tuple[nn.Module, torch.Tensor]]:
    """A MobileNetV3 block on a 14 x 14 map, and a perceptron."""
    torch.manual_seed(0)
    mlp = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
    return {
        "mobile_block": (mobile_block(16, 64).eval(), torch.randn(1, 16, 14, 14)),
        "mlp": (mlp.eval(), torch.randn(1, 64)),
    }


def engine_call(model: sdk.Model, x: Array) -> Callable[[], object]:
    """The engine's own call, on the engine's own object in `model`: same file, same threads."""
    build = {"onnxruntime": _onnxruntime_call, "openvino": _openvino_call}[model.target.engine]
    return build(model, x)


def _onnxruntime_call(model: sdk.Model, x: Array) -> Callable[[], object]:
    run = model.session._session.run  # type: ignore[attr-defined]
    names, feed = [model.signature.outputs[0].name], {model.signature.inputs[0].name: x}
    return lambda: run(names, feed)[0]


def _openvino_call(model: sdk.Model, x: Array) -> Callable[[], object]:
    request = model.session._compiled.create_infer_request()  # type: ignore[attr-defined]

    def call() -> object:
        request.infer({0: x}, share_inputs=True, share_outputs=True)
        return request.get_output_tensor(0).data.copy()

    return call


def measure(engine: str, threads: int, runs: int) -> Iterator[Overhead]:
    """Compile, load and time each model on `engine`."""
    for name, (module, x) in models().items():
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "m.edge"
            sdk.compile(module, inputs=x, target=engine, output=path, threads=threads)
            with sdk.load(path, threads=threads) as model:
                yield _measure(model, name, x.numpy(), threads, runs)


def _measure(model: sdk.Model, name: str, x: Array, threads: int, runs: int) -> Overhead:
    direct = engine_call(model, x)
    np.testing.assert_allclose(
        model.predict(x), np.asarray(direct()).reshape(model.predict(x).shape)
    )
    calls = {"direct": direct, "predict": lambda: model.predict(x)}
    times = sample(calls, runs=runs, warmup=200, budget=30.0)
    own, ours = Latency.of(times["direct"]), Latency.of(times["predict"])
    paired = float(np.median(np.subtract(times["predict"], times["direct"])))
    difference = ours.p50 - own.p50
    return Overhead(name, model.target.engine, threads, own, ours, difference, paired)


def main() -> int:
    """Print the table, or JSON; 1 where the promise is broken."""
    parser = argparse.ArgumentParser(description="What predict() adds to the engine's own call.")
    parser.add_argument("--runs", type=int, default=2000)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    present = [name for name in ENGINES if sdk.engines()[name].run]
    rows = [row for name in present for row in measure(name, args.threads, args.runs)]
    if args.json:
        print(json.dumps([asdict(row) | {"ok": row.ok, "goal": GOAL} for row in rows], indent=1))
    else:
        _print(rows)
    return 0 if rows and all(row.ok for row in rows) else 1


def _print(rows: list[Overhead]) -> None:
    head = f"{'model':14}{'engine':13}{'threads':>8}{'runs':>6}"
    print(head + f"{'engine us':>16}{'predict us':>16}{'difference':>12}{'paired':>9}")
    for row in rows:
        own, ours = (f"{t.p50:.1f} ±{50 * t.spread:.0f} %" for t in (row.direct, row.predict))
        print(
            f"{row.model:14}{row.engine:13}{row.threads:>8}{row.direct.runs:>6}{own:>16}{ours:>16}"
            f"{row.difference:>+12.1f}{row.paired:>+9.1f}{'' if row.ok else '  over the goal'}"
        )
    print(f"Medians ± half the interquartile range. Goal: at most {GOAL:.0f} us more.")


if __name__ == "__main__":
    sys.exit(main())
