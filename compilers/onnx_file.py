"""A `Program` to an ONNX file: what ONNX Runtime and OpenVINO load."""

from __future__ import annotations

import contextlib
import io
import re
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import torch
from torch.export import ExportedProgram
from torch.fx import Node

from sdk.compilers.onnx_attention import attention
from sdk.compilers.onnx_kernels import finish, settled, translations
from sdk.compilers.onnx_rewrites import rewrite
from sdk.compilers.onnx_sources import name_values, node_sources
from sdk.compilers.program import Program, SourceLine, source_of
from sdk.compilers.weight_only_graph import DEQUANTIZE, stored_bits
from sdk.compilers.weight_only_onnx import OPSET as BLOCKS, dequantize, pack
from sdk.errors import EdgeError, EngineError, UnsupportedOperatorError
from sdk.extras import quiet
from sdk.kernels.needs import PORTABLE
from sdk.torch_operators import NAMESPACES

OPSET = 20
OPSET_16 = 21  # the first with 16 bits in QuantizeLinear
IR_VERSION = 10  # what ONNX Runtime 1.18 and later read
# operator of the program -> its ONNX translation, where torch's own must be replaced
TRANSLATIONS: dict[Any, Any] = {
    DEQUANTIZE: dequantize,
    torch.ops.aten.scaled_dot_product_attention.default: attention,
}


def write_onnx(program: Program, file: Path) -> dict[str, SourceLine]:
    """Write `program` to `file`; return node name -> source. Node names are unique."""
    if "onnx" not in program.lowered:
        program.lowered["onnx"] = _lowered(program)
    made = program.lowered["onnx"]
    if isinstance(made, EdgeError):
        raise made
    data, sources = made
    file.write_bytes(data)
    return dict(sources)


def _lowered(program: Program) -> tuple[bytes, dict[str, SourceLine]] | EdgeError:
    """The file, or why there is none: asked again, torch.onnx may fail of what it left behind."""
    try:
        return _lower(program)
    except EdgeError as error:
        return error


def _lower(program: Program) -> tuple[bytes, dict[str, SourceLine]]:
    program = replace(program, exported=settled(program))
    model = _translate(program)
    sources = node_sources(model, program)
    _name_values(model, program)
    rewrite(model.graph)
    pack(model.graph, stored_bits(program))
    name_values(model.graph)
    _strip(model)
    ends = {name: node.name for node in model.graph.node for name in node.output}
    named = {value.name: ends.get(value.name) for value in model.graph.output}
    sources |= {name: sources[node] for name, node in named.items() if node in sources}
    return model.SerializeToString(), sources


def _translate(program: Program) -> onnx.ModelProto:
    def translate(exported: ExportedProgram) -> onnx.ModelProto:
        return _to_model(exported, _opset(program))

    try:
        model = translate(program.exported)
        with_bodies = program.kernel_policy == PORTABLE
        finish(model, program, translate if with_bodies else None)
    except (torch.onnx.errors.OnnxExporterError, RuntimeError, TypeError) as error:
        raise _translation_error(error, program) from error
    return model


def _to_model(exported: ExportedProgram, opset: int) -> onnx.ModelProto:
    # With gradients on, attention whose mask is a parameter (T5, Swin) has other strides in one
    # pass of torch.onnx than in the one before, and its views fail.
    with _quiet(), torch.no_grad():
        result = torch.onnx.export(
            exported,
            dynamo=True,
            opset_version=opset,
            optimize=True,
            verbose=False,
            custom_translation_table=TRANSLATIONS | translations(exported),
        )
    assert result is not None
    model = result.model_proto
    assert isinstance(model, onnx.ModelProto)
    model.ir_version = IR_VERSION
    return model


def _opset(program: Program) -> int:
    if stored_bits(program):
        return BLOCKS
    return OPSET_16 if program.precision == "a16w8" else OPSET


# Where an exception tells of the node that it is about, and what that node reads.
AT_NODE = re.compile(
    r"(?:While executing|Error when translating node) %\w+ : .*?target=(?:torch\.ops\.)?([\w.]+)\]"
    r"\(args = \((.*?)\), kwargs"
)
MISSING = re.compile(r"No ONNX function found for <OpOverload\(op='([\w.:]+)'")
ESCAPES = re.compile(r"\x1b\[[0-9;]*m")  # colours
LENGTH = 300  # of what is quoted


def _translation_error(error: BaseException, program: Program) -> EdgeError:
    """UnsupportedOperatorError with operator and place, where the failure tells of one."""
    text = _chain(error)
    missing, at = MISSING.search(text), AT_NODE.search(text)
    named = missing or at
    if named is None:
        return EngineError(f"torch.onnx could not translate the program: {_cause(error)}")
    name = named[1]
    source = _place(program, name, re.findall(r"%(\w+)", at[2]) if at else [])
    return UnsupportedOperatorError(
        f"The operator {name} has no translation to ONNX."
        if missing
        else f"torch.onnx could not translate the operator {name}: {_cause(error)}",
        got=source,
        fix="compile for 'torch', which has it, or " * source.operator.startswith(NAMESPACES)
        + "write the operator with ordinary ones",
    )


def _cause(error: BaseException) -> str:
    """What went wrong at first, in a line: torch.onnx wraps it in advice for its developers."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = ESCAPES.sub("", str(error)).strip().partition("\n")[0]
    return f"{type(error).__name__}: {text}"[:LENGTH]


def _place(program: Program, name: str, reads: list[str]) -> SourceLine:
    """Of the node of operator `name`; a half program may know it from the one it was made of."""
    unknown = SourceLine("", name, "")
    for known in (program, program.base):
        node = None if known is None else _untranslated(known, name, reads)
        found = unknown if node is None else source_of(node)
        if found.module or found.line:
            return found
    return unknown


def _untranslated(program: Program, name: str, reads: list[str]) -> Node | None:
    """The node of operator `name`, or the one that was taken apart into it: it reads the same."""
    nodes = [node for node in program.exported.graph.nodes if node.op == "call_function"]
    own = (node for node in nodes if str(node.target).startswith(name))
    whole = (n for n in nodes if reads and {*reads} <= {i.name for i in n.all_input_nodes})
    return next(own, None) or next(whole, None)


def _chain(error: BaseException) -> str:
    parts: list[str] = []
    current: BaseException | None = error
    while current is not None:
        parts.append(str(current))
        current = current.__cause__
    return "\n".join(parts)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """torch.onnx prints and warns about its own inside; what matters is raised."""
    silent = contextlib.redirect_stdout(io.StringIO())
    with quiet("torch.onnx"), warnings.catch_warnings(), silent:
        warnings.simplefilter("ignore")
        yield


def _name_values(model: onnx.ModelProto, program: Program) -> None:
    """Give inputs and outputs the signature's names."""
    graph, signature = model.graph, program.signature
    new = {value.name: spec.name for value, spec in zip(graph.input, signature.inputs, strict=True)}
    inner = {name: f"{name}.value" for name in {v for n in graph.node for v in n.output}}
    taken = set(new.values()) | {spec.name for spec in signature.outputs}
    new |= {old: name for old, name in inner.items() if old in taken and old not in new}
    for node in graph.node:
        node.input[:] = [new.get(name, name) for name in node.input]
        node.output[:] = [new.get(name, name) for name in node.output]
    for value in graph.input:
        value.name = new[value.name]
    for value, spec in zip(graph.output, signature.outputs, strict=True):
        _name_output(graph, value, new.get(value.name, value.name), spec.name)


def _name_output(graph: onnx.GraphProto, value: onnx.ValueInfoProto, old: str, name: str) -> None:
    """An Identity node names an output: one value may be two outputs, or an input."""
    producers = [node for node in graph.node if old in node.output]
    value.name = name
    if len(producers) == 1 and sum(old in node.input for node in graph.node) == 0:
        producer = producers[0]
        producer.output[:] = [name if output == old else output for output in producer.output]
    else:
        graph.node.append(onnx.helper.make_node("Identity", [old], [name], f"output_{name}"))


def _strip(model: onnx.ModelProto) -> None:
    """Drop what only a debugger reads: it holds paths of the build host and half the small file."""
    graph = model.graph
    for item in (*graph.node, *graph.input, *graph.output, *graph.initializer, graph, model):
        del item.metadata_props[:]
    del graph.value_info[:]
    used = {name for node in graph.node for name in node.input}
    kept = [value for value in graph.initializer if value.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    model.doc_string = ""
