"""The NPU of ONNX Runtime, by QNN: what it can do here, and which operator it takes."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sdk import qnn
from sdk.errors import EngineUnavailableError
from sdk.runtimes.session import Placement
from sdk.signature import Dim, Signature
from sdk.structure import from_json, parse
from sdk.target import DeviceSupport

NOTE = (
    "These are times of QNN's simulator on this machine's CPU; they say nothing about the NPU.",
)
# What ONNX Runtime appends to the name of a node that it copies or moves to another layout.
CONTEXT = "EPContext"
COPIED = re.compile(r"(_token_\d+|/duplicated)+$")


def support() -> DeviceSupport:
    """The device `npu` of ONNX Runtime on this machine."""
    lacking = qnn.missing()
    if lacking is not None:
        reason, fix = lacking
        return DeviceSupport(qnn.PRECISIONS, compile=False, run=False, reason=reason, fix=fix)
    if not qnn.simulated():
        return DeviceSupport(qnn.PRECISIONS)
    return DeviceSupport(
        qnn.PRECISIONS,
        checked_on="simulator",
        reason="this machine has QNN's simulator, not the NPU",
        fix="load the artifact on a Snapdragon device",
    )


def check_requires(requires: Mapping[str, str]) -> None:
    """Refuse a context binary of a newer SDK, or of another architecture than this chip's."""
    if "qnn" not in requires:
        return
    lacking = qnn.missing()
    if lacking is not None:
        raise no_stand_in(*lacking)
    here = qnn.sdk_version()
    if _numbers(here) < _numbers(requires["qnn"]):
        raise EngineUnavailableError(
            "The artifact's context binary is of a newer QNN SDK than this machine's.",
            expected=f"QNN SDK {requires['qnn']} or later",
            got=here,
            fix="pip install -U onnxruntime-qnn, or compile with this machine's version",
        )
    _check_soc(requires)


def no_stand_in(
    reason: str = "another device was asked for", fix: str = "load it on the NPU"
) -> EngineUnavailableError:
    """What to say where a context binary would have to run without the NPU."""
    return EngineUnavailableError(
        "The artifact holds a context binary, which QNN alone runs: no CPU can stand in for it.",
        got=reason,
        fix=f"{fix}, or compile for 'onnxruntime:npu' without a chip",
    )


def _check_soc(requires: Mapping[str, str]) -> None:
    """The simulator takes all; a device whose chip the system does not tell is left to QNN."""
    soc = None if qnn.simulated() else qnn.SOCS.get(qnn.this_soc() or "")
    if soc is not None and f"v{soc.htp}" != requires["htp"]:
        raise EngineUnavailableError(
            f"The artifact's context binary is for another NPU than that of {soc.name}.",
            expected=f"HTP {requires['htp']} ({requires['soc']})",
            got=f"HTP v{soc.htp}",
            fix=f"compile for 'onnxruntime:npu:<precision>:{soc.name}', or without a chip",
        )


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version))


def placement(session: Any, file: Path, signature: Signature) -> list[Placement]:
    """Each node of the optimised graph with the provider that ONNX Runtime assigned it to.

    A context binary is one node for ONNX Runtime; what QNN made it of is told by a file beside it.
    """
    rows: list[Placement] = []
    for part in session.get_provider_graph_assignment_info():
        for node in part.get_nodes():
            if part.ep_name != qnn.PROVIDER:
                rows.append(_row(node.name, node.op_type, node.op_type, _why_not(signature), "cpu"))
            elif node.op_type == CONTEXT:
                rows += _inside(file.with_name(qnn.OPERATORS), node.name)
            else:
                rows.append(_row(node.name, node.op_type, "HTP"))
    return rows


def _row(
    name: str,
    kind: str,
    kernel: str,
    reason: str = "asked for",
    device: str = "npu",
    nodes: Sequence[str] = (),
) -> Placement:
    names = tuple(COPIED.sub("", node) for node in nodes or (name,))
    return Placement(name, kind, device, kernel, reason, names)


def _inside(file: Path, graph: str) -> list[Placement]:
    """The QNN operators of a context binary; it as one operator where nothing tells."""
    if not file.is_file():
        return [_row(graph, CONTEXT, "HTP context binary")]
    graphs = from_json(
        dict[str, tuple[qnn.Operator, ...]], parse(file.read_bytes(), file.name), file.name
    )
    return [_row(row.name, row.kind, "HTP", nodes=row.nodes) for row in graphs.get(graph, ())]


def _why_not(signature: Signature) -> str:
    specs = (*signature.inputs, *signature.outputs)
    if any(isinstance(dim, Dim) for spec in specs for dim in spec.shape):
        return "QNN needs fixed shapes"
    return "QNN has no operator for it at these types and shapes"
