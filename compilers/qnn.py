"""For ONNX Runtime's NPU: try what QNN makes of the ONNX file, or keep it as a context binary.

Without a chip in the target the artifact holds the ONNX file, which QNN compiles at load, on any
chip. With one it holds what QNN compiled: it loads at once, on that architecture only.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from sdk import qnn
from sdk.compilers.program import Build
from sdk.errors import EngineError, UnsupportedOperatorError
from sdk.structure import to_json
from sdk.target import Target

BUILD = "import sys; from sdk.qnn import build_context; build_context(*sys.argv[1:])"


def finish(build: Build, target: Target) -> Build:
    """The build for the NPU, made of the build for any device, which holds `model.onnx`."""
    soc = qnn.soc_of(target.arch) if target.arch else None
    with tempfile.TemporaryDirectory() as folder:
        context = Path(folder) / "model.onnx"
        _compile(build.file, context, target)
        if soc is None:
            return build
        operators = _operators(context.with_name("qnn_op_trace.json"))
        build.file.write_bytes(context.read_bytes())
    build.file.with_name(qnn.OPERATORS).write_text(
        json.dumps(to_json(operators), separators=(",", ":"))
    )
    requires = {"qnn": qnn.sdk_version(), "soc": soc.name, "htp": f"v{soc.htp}"}
    return replace(build, requires=requires)


def _compile(model: Path, context: Path, target: Target) -> None:
    arguments = [str(model), str(context), target.arch or ""]
    child = subprocess.run(
        [sys.executable, "-P", "-c", BUILD, *arguments], capture_output=True, text=True, check=False
    )
    if child.returncode == 0:
        return
    said = [line.strip() for line in child.stderr.splitlines() if line.strip()] or ["nothing"]
    if child.returncode < 0:
        raise UnsupportedOperatorError(
            f"QNN's library aborts on this model (signal {-child.returncode}).",
            got=said[-1],
            fix="try another precision: int8 and a16w8 are what the NPU is made for",
        )
    raise EngineError(
        f"QNN cannot compile the model for {target}.",
        got=said[-1],
        fix="try another precision: int8 and a16w8 are what the NPU is made for",
    )


def _operators(trace: Path) -> dict[str, tuple[qnn.Operator, ...]]:
    """Name of each subgraph -> its QNN operators, from QNN's trace of them."""
    graphs = json.loads(trace.read_text())["subgraph_traces"]
    return {graph["graph_name"]: tuple(map(_operator, graph["op_mappings"])) for graph in graphs}


def _operator(row: Mapping[str, Any]) -> qnn.Operator:
    nodes = [source["name"] for source in row["sources"] if source["type"] == "OP"]
    return qnn.Operator(row["dst_name"], row["dst_qnn_op_type"], tuple(nodes))
