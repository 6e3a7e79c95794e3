"""What `auto` finds on two real networks: wall time, candidates, and ratios to single precisions.

    python tests/bench/search.py --data FOLDER [--run RUN] [--engines onnxruntime openvino]
        [--networks mobilenet_v2 cifar10] [--threads N] [--report FOLDER]
        [--json]

- `mobilenet_v2`: the public ONNX file and sample images that `mobilenet_v2.py` describes; the
  budget is 97 % agreement with fp32 on the images that do not calibrate.
- `cifar10`: the student of the recipe `mobilenet_kd` in RUN, the folder of a finished run; without
  it the preset `tiny` is run on FOLDER/cifar10. The budget is a drop of 0.01 in top-1 accuracy.

Afterwards each single precision is compiled alone, and all artifacts are timed in one interleaved
run of their own. It holds if the search took less than 10 minutes, the metric is within its budget
and the median of the round-by-round ratios to each single precision is at most 1 + `NOISE`.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from mobilenet_v2 import BATCH, MODEL, Agreement, load_images

import sdk
from sdk.compilers.capture import capture
from sdk.timing import sample

MINUTES = 10
NOISE = 0.03  # by which the medians of equal builds differ on a busy machine
SECONDS = 20.0  # of the interleaved run
IMAGE = {"image": {0: sdk.Dim("batch", 1, 1, 64)}}


@dataclass(frozen=True)
class Network:
    """A captured model, what calibrates and checks it, and its budget."""

    program: Any
    example: dict[str, Any]
    calibration: list[Any]
    check: list[Any]
    metric: Callable[[], Callable[[Any], float]]
    max_drop: float


class TopOne:
    """Top-1 accuracy on labelled images."""

    __name__ = "top1"

    def __init__(self, images: np.ndarray[Any, Any], labels: np.ndarray[Any, Any]) -> None:
        self.images, self.labels = images, labels

    def __call__(self, predict: Callable[[Any], Any]) -> float:
        parts = range(0, len(self.images), 50)
        best = np.concatenate([predict(self.images[i : i + 50]).argmax(1) for i in parts])
        return float((best == self.labels).mean())


def mobilenet_v2(data: Path, _run: Path | None) -> Network:
    """Every second ten images calibrate, the others check."""
    images = load_images(data)
    starts = range(0, len(images), 2 * BATCH)
    check = np.concatenate([images[i + BATCH : i + 2 * BATCH] for i in starts])
    example = {"image": check[:1]}
    return Network(
        capture(data / MODEL, example, IMAGE),
        example,
        [images[i : i + BATCH] for i in starts],
        [check[:BATCH]],
        lambda: Agreement(check),
        0.03,
    )


def cifar10(data: Path, run: Path | None) -> Network:
    """The student as it was trained; validation images calibrate, test images check."""
    from safetensors.torch import load_file

    from sdk.recipes.data import images

    with tempfile.TemporaryDirectory() as name:
        if run is None:
            recipe = sdk.recipe("mobilenet_kd", preset="tiny", data=str(data / "cifar10"))
            run = recipe.run(Path(name) / "student.edge").folder
        settings = json.loads((run / "settings.json").read_text())
        known = {key: settings[key] for key in ("student", "width", "stem_stride", "image_size")}
        recipe = sdk.recipe("mobilenet_kd", preset="tiny", **known)
        _, test = images.load(str(data / "cifar10"), recipe.image_size, Path(name), lambda *_: None)
        student = recipe.new_student(len(test.classes))
        names = ("ssld-finetuned", "ssld")
        files = (run / f"seed{settings['seed']}" / f"{arm}.safetensors" for arm in names)
        student.load_state_dict(load_file(next(file for file in files if file.is_file())))
    size = (recipe.image_size,) * 2
    pre = sdk.ImageProcessor(size=size, mean=tuple(settings["mean"]), std=tuple(settings["std"]))
    inputs = pre(list(test.pixels[:3000]))
    example = {"image": inputs[:1]}
    return Network(
        capture(student.eval(), example, IMAGE),
        example,
        [inputs[i : i + 64] for i in range(2000, 2512, 64)],
        [inputs[:64]],
        lambda: TopOne(inputs[:2000], test.labels[:2000]),
        0.01,
    )


NETWORKS = {"mobilenet_v2": mobilenet_v2, "cifar10": cifar10}


def options_of(network: Network, threads: int | None) -> dict[str, Any]:
    """What a search and a compile of one precision have in common."""
    return {
        "inputs": network.example,
        "calibration": network.calibration,
        "check": network.check,
        "metric": network.metric(),
        "max_drop": network.max_drop,
        "threads": threads,
        "progress": tell(),
    }


def tell() -> Callable[[str, int, int], None]:
    """Lines on stderr, one for each new candidate or precision."""
    told: set[str] = set()

    def report(what: str, _done: int, _total: int) -> None:
        label = what.partition("] ")[2].partition(":")[0]
        if label and label not in told:
            told.add(label)
            print(what, file=sys.stderr, flush=True)

    return report


def singles(
    network: Network, engine: str, folder: Path, threads: int | None
) -> Iterator[tuple[str, sdk.Artifact]]:
    """Each single precision that passes its gates, compiled by itself."""
    for precision in sdk.engines()[engine].devices["cpu"].precisions:
        if precision not in ("fp32", "fp16", "bf16", "int8"):
            continue
        try:
            yield (
                precision,
                sdk.compile(
                    network.program,
                    target=f"{engine}:cpu:{precision}",
                    output=folder / f"{engine}-{precision}.edge",
                    waive=["slower"],
                    **options_of(network, threads),
                ),
            )
        except sdk.ParityError as error:
            print(f"{precision} alone is refused: {error.what}", file=sys.stderr)


def ratios(
    kept: sdk.Artifact, others: dict[str, sdk.Artifact], feed: Any, threads: int | None
) -> dict[str, Any]:
    """Kept over each other one: quartiles of the ratios, round by round."""
    models = {name: sdk.load(artifact.path, threads=threads) for name, artifact in others.items()}
    models["auto"] = sdk.load(kept.path, threads=threads)
    calls = {name: (lambda model=model: model.predict(feed)) for name, model in models.items()}
    times = {k: np.array(v) for k, v in sample(calls, runs=2000, budget=SECONDS).items()}
    for model in models.values():
        model.close()
    found = {}
    for name in others:
        low, median, high = np.percentile(times["auto"] / times[name], [25, 50, 75])
        medians = float(np.median(times["auto"]) / np.median(times[name]))
        found[name] = {"ratio": medians, "quartiles": [float(low), float(median), float(high)]}
    return found


def tuned(
    name: str, network: Network, engine: str, folder: Path, options: argparse.Namespace
) -> dict[str, Any]:
    """One search and the run against the single precisions."""
    start, cpu = time.monotonic(), time.process_time()
    search = sdk.tune(
        network.program,
        target=f"{engine}:cpu:auto",
        output=folder / f"{engine}.edge",
        cache=False,
        **options_of(network, options.threads),
    )
    seconds, cpu = time.monotonic() - start, time.process_time() - cpu
    if options.report is not None:
        search.save(options.report / f"{name}-{engine}.html")
    others = dict(singles(network, engine, folder, options.threads))
    kept = search.artifact.manifest.kept
    row = {
        "network": name,
        "engine": engine,
        "seconds": seconds,
        "cpu_seconds": cpu,
        "kept": kept.target,
        "float_layers": kept.float_layers,
        "ratios": ratios(search.artifact, others, network.example, options.threads),
        "search": search.to_json(),
    }
    row["holds"] = holds(row, network.max_drop)
    return row


def holds(row: dict[str, Any], max_drop: float) -> bool:
    """Within ten minutes, within the metric's budget, not slower than any single precision."""
    kept = next(c for c in row["search"]["candidates"] if c["kept"])
    quick = all(found["ratio"] <= 1 + NOISE for found in row["ratios"].values())
    return row["seconds"] < 60 * MINUTES and (kept["loss"] or 0.0) <= max_drop and quick


def table(row: dict[str, Any]) -> str:
    """A search for people."""
    search = row["search"]
    lines = [
        f"{row['network']} on {row['engine']}: {row['seconds']:.0f} s "
        f"({row['cpu_seconds']:.0f} s of processor time), {search['built']} builds, "
        f"kept {row['kept']}{'' if row['holds'] else '  DOES NOT HOLD'}"
    ]
    for c in search["candidates"]:
        p50 = f"{c['latency']['p50'] / 1e3:8.2f} ms" if c["latency"] else " " * 11
        loss = "" if c["loss"] is None else f"{c['loss']:.4f}"
        lines.append(
            f"  {c['target']:24}{c['bytes'] / 1e6:7.2f} MB {p50}  {search['metric']} -{loss:7}"
            f"{'*' if c['on_front'] else ' '} {'kept: ' if c['kept'] else ''}{c['reason'][:160]}"
        )
    for name, found in row["ratios"].items():
        low, _, high = found["quartiles"]
        lines.append(f"  auto over {name:5} {found['ratio']:.3f} (quartiles {low:.3f} {high:.3f})")
    return "\n".join(lines)


def main() -> int:
    """Run everything and print it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--run", type=Path)
    parser.add_argument("--engines", nargs="*", default=["onnxruntime", "openvino"])
    parser.add_argument("--networks", nargs="*", default=list(NETWORKS))
    parser.add_argument("--threads", type=int)
    parser.add_argument("--report", type=Path)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    rows = []
    for name in arguments.networks:
        network = NETWORKS[name](arguments.data, arguments.run)
        for engine in arguments.engines:
            with tempfile.TemporaryDirectory() as folder:
                rows.append(tuned(name, network, engine, Path(folder), arguments))
            if not arguments.json:
                print(table(rows[-1]), flush=True)
    if arguments.json:
        print(json.dumps(rows, indent=1))
    return 0 if all(row["holds"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
