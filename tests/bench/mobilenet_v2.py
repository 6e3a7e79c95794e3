"""A foreign ONNX file of a public MobileNetV2 on both engines: agreement, size, speed, refusal.

    python tests/bench/mobilenet_v2.py --data FOLDER [--json]

FOLDER holds `mobilenet/mobilenet_v2_1.0_224_fp32.onnx` (input `image` N x 3 x 224 x 224 in -1..1,
output `logits` of 1,001 classes) and `imagenet_sample/images.parquet` (column `image`).
Every second image calibrates, the others check. A build that is calibrated on pictures of another
normalisation (0..255 in place of -1..1) must be refused.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

import sdk

MODEL = Path("mobilenet/mobilenet_v2_1.0_224_fp32.onnx")
IMAGES = Path("imagenet_sample/images.parquet")
ENGINES = ("onnxruntime", "openvino")
PRE = sdk.ImageProcessor(size=(224, 224), resize=224, scale=1 / 127.5, mean=(1.0,), layout="NCHW")
BATCH = 10


class Agreement:
    """Share of the check images on which a build gives the class that `reference` gives."""

    __name__ = "agreement with fp32"

    def __init__(self, images: np.ndarray[Any, Any]) -> None:
        self.images = images
        self.reference: np.ndarray[Any, Any] | None = None
        self.values: list[float] = []

    def __call__(self, predict: Callable[[Any], Any]) -> float:
        parts = range(0, len(self.images), BATCH)
        best = np.concatenate([predict(self.images[i : i + BATCH]).argmax(1) for i in parts])
        if self.reference is None:
            self.reference = best
        self.values.append(float((best == self.reference).mean()))
        return self.values[-1]


def load_images(root: Path) -> np.ndarray[Any, Any]:
    """All sample images, preprocessed."""
    return PRE(pq.read_table(root / IMAGES).column("image").to_pylist())


def build(
    root: Path, folder: Path, engine: str, calibration: list[Any], check: np.ndarray[Any, Any]
) -> tuple[sdk.Artifact, Agreement]:
    """int8 (with its fp32 baseline) for one engine, gated at 97 % agreement."""
    metric = Agreement(check)
    artifact = sdk.compile(
        root / MODEL,
        inputs={"image": check[:1]},
        target=f"{engine}:cpu:int8",
        output=folder / f"{engine}.edge",
        dynamic={"image": {0: sdk.Dim("batch", 1, 1, 16)}},
        calibration=calibration,
        check=[check[:BATCH]],
        metric=metric,
        max_drop=0.03,
        processor=sdk.Processor("image", PRE),
    )
    return artifact, metric


def rows_of(engine: str, artifact: sdk.Artifact, metric: Agreement) -> list[dict[str, Any]]:
    """One row per build."""
    fp32 = artifact.manifest.candidates[0]
    scores = (metric.values[0], metric.values[-1])
    return [
        {
            "engine": engine,
            "target": candidate.target,
            "megabytes": candidate.bytes / 1e6,
            "size_of_fp32": candidate.bytes / fp32.bytes,
            "p50_us": candidate.latency.p50 if candidate.latency else None,
            "spread": candidate.latency.spread if candidate.latency else None,
            "speedup_over_fp32": candidate.speedup,
            "agreement": score,
            "float_layers": candidate.float_layers,
            "kept": candidate.kept,
            "reason": candidate.reason,
        }
        for candidate, score in zip(artifact.manifest.candidates, scores, strict=True)
    ]


def refusal(root: Path, folder: Path, engine: str, wrong: list[Any], check: Any) -> str:
    """The error of a build whose calibration data has another normalisation."""
    try:
        build(root, folder / "wrong", engine, wrong, check)
    except sdk.ParityError as error:
        return str(error)
    raise SystemExit(f"{engine}: a wrongly calibrated build was accepted")


def main() -> int:
    """Run everything and print it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    images = load_images(arguments.data)
    calibration = [images[i : i + BATCH] for i in range(0, len(images), 2 * BATCH)]
    check = np.concatenate(
        [images[i + BATCH : i + 2 * BATCH] for i in range(0, len(images), 2 * BATCH)]
    )
    wrong = [(batch + 1) * 127.5 for batch in calibration[:5]]
    report: dict[str, Any] = {"images": len(images), "check": len(check), "builds": []}
    with tempfile.TemporaryDirectory() as name:
        for engine in ENGINES:
            artifact, metric = build(arguments.data, Path(name), engine, calibration, check)
            report["builds"] += rows_of(engine, artifact, metric)
            report[f"refusal on {engine}"] = refusal(
                arguments.data, Path(name), engine, wrong, check
            )
    print(json.dumps(report, indent=1) if arguments.json else table(report))
    return 0 if all(row["agreement"] >= 0.97 for row in report["builds"]) else 1


def table(report: dict[str, Any]) -> str:
    """The report for people."""
    lines = [f"{report['check']} images checked, the others calibrate"]
    for row in report["builds"]:
        lines.append(
            f"{row['target']:24} {row['megabytes']:6.2f} MB ({row['size_of_fp32']:.2f})  "
            f"p50 {row['p50_us'] / 1e3:6.2f} ms (spread {row['spread']:.0%}, "
            f"{row['speedup_over_fp32']:.2f}x fp32)  agreement {row['agreement']:.1%}  "
            f"float layers: {', '.join(row['float_layers']) or 'none'}  "
            f"{'kept' if row['kept'] else 'rejected'}: {row['reason']}"
        )
    lines += [f"{key}:\n{text}" for key, text in report.items() if key.startswith("refusal")]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
