"""The check that an imported ONNX file computes in PyTorch what it says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
from onnx.reference import ReferenceEvaluator

from sdk.compilers.program import Feed, Program
from sdk.errors import ParityError
from sdk.extras import installed, require
from sdk.parity import TOLERANCE, compare
from sdk.signature import Array


def check_import(path: Path, program: Program, feed: Feed) -> None:
    """Raise ParityError unless PyTorch gives what ONNX Runtime (or onnx's evaluator) gives."""
    names = [spec.name for spec in program.signature.outputs]
    results = _run(path, names, dict(feed))
    want = dict(zip(names, results, strict=True))
    report = compare(program.reference(feed), want, TOLERANCE["fp32"])
    if not report.ok:
        raise ParityError(
            f"{path.name} was not imported faithfully.",
            expected="the outputs that ONNX Runtime computes, without optimisation",
            got=str(report),
            fix="report the model: an operator's import is wrong",
            report=report,
        )


def _run(path: Path, names: list[str], feed: dict[str, Array]) -> list[Any]:
    if not installed("onnxruntime"):
        return list(ReferenceEvaluator(onnx.load(path)).run(names, feed))
    ort = require("onnxruntime", purpose="Checking an ONNX import")
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return list(session.run(names, feed))
