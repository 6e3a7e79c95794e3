"""Compile for Core ML: an `.mlpackage` with an ML program, on any machine.

fp32 programs compute in fp32. All others compute in fp16, which is what the Neural Engine has: the
fp16 program is converted from its fp32 form, since coremltools rounds constants and casts borders
better than a graph that is fp16 already lets it; int8 programs keep their Q/DQ pairs, and
compressed weights their integers and palettes.
"""

from __future__ import annotations

import json
import uuid
from pathlib import Path

from sdk.apple import PACKAGE
from sdk.compilers.mil.convert import convert, deployment_of
from sdk.compilers.mil.frontend import hushed
from sdk.compilers.mil.session import EvaluatorSession
from sdk.compilers.program import Build, Program
from sdk.target import Target


def compile_program(program: Program, target: Target, folder: Path) -> Build:
    """Write `model.mlpackage`, a folder."""
    source = program
    if program.precision == "fp16" and program.base is not None:
        source = program.base if program.base.signature == program.signature else program
    converted = convert(source, target, half=program.precision != "fp32")
    package = folder / PACKAGE
    with hushed():
        converted.model.save(str(package))
    for handles in package.glob("*_debug_handle_mapping.json"):
        handles.unlink()  # of the nodes of this compile: what they say is in `sources`
    manifest = package / "Manifest.json"
    manifest.write_text(_reproducible(manifest.read_text()))
    requires = {"deployment": deployment_of(target)}
    return Build(manifest, converted.sources, requires, depth=2)


def open_check(build: Build, program: Program, target: Target, *, threads: int) -> EvaluatorSession:
    """The saved file in our evaluator."""
    del threads  # the evaluator computes in torch, which has its own
    (output,) = program.exported.graph.find_nodes(op="output")
    values = [node.meta["val"] for node in output.args[0]]
    ranks = [value.dim() for value in values[len(values) - len(program.signature.outputs) :]]
    return EvaluatorSession(build.file.parent, program.signature, target, ranks)


def _reproducible(text: str) -> str:
    """The package's table of contents with identifiers that follow from its paths."""
    manifest = json.loads(text)
    entries = manifest["itemInfoEntries"]
    new = {old: str(uuid.uuid5(uuid.NAMESPACE_URL, item["path"])) for old, item in entries.items()}
    manifest["itemInfoEntries"] = {
        new[old]: entries[old] for old in sorted(new, key=new.__getitem__)
    }
    manifest["rootModelIdentifier"] = new[manifest["rootModelIdentifier"]]
    return json.dumps(manifest, indent=4, sort_keys=True) + "\n"
