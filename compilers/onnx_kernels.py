"""Plugin kernels in ONNX: one node of the domain `edge` each, and its body where it is wanted.

The body is the kernel's plain torch function as a local function of the model: an engine that has
the kernel runs that, one that has not inlines the body. Nodes with other shapes, dtypes or
attributes have other bodies, which ONNX keeps apart as overloads of the function.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import onnx
import torch
from onnx import FunctionProto, ModelProto, NodeProto, TensorProto, helper
from onnx.defs import OpSchema
from onnxscript import values
from torch.export import Dim, ExportedProgram
from torch.fx import Node

from sdk.compilers.kernels import decomposed, kernel_nodes
from sdk.compilers.program import Program
from sdk.errors import EngineError
from sdk.kernels.spec import DOMAIN, KernelSpec

VERSION = 1  # of the domain; kernels have versions of their own, which the manifest records
KINDS: dict[str, Callable[[Any], Any]] = {"int": int, "bool": int, "float": float}
ATTRIBUTE = {"int": OpSchema.AttrType.INT, "bool": OpSchema.AttrType.INT,
             "float": OpSchema.AttrType.FLOAT}  # fmt: skip
ANY = sorted(onnx.defs.get_schema("Identity", 14).type_constraints[0].allowed_type_strs)
PLACE = "edge_place"  # while torch.onnx is at work: which of the program's kernel nodes it was
Translate = Callable[[ExportedProgram], ModelProto]


def settled(program: Program) -> ExportedProgram:
    """The program with ordinary operators for kernels, unless a plan for its engine kept them."""
    return program.exported if program.kernels else decomposed(program.exported)


def translations(exported: ExportedProgram) -> dict[Any, Callable[..., Any]]:
    """Operator -> its translation, for the kernels that stay nodes."""
    specs = {spec.op: spec for _, spec in kernel_nodes(exported)}
    places = itertools.count()
    return {op: _translation(spec, places) for op, spec in specs.items()}


def _translation(spec: KernelSpec, places: Iterator[int]) -> Callable[..., Any]:
    call = values.Op(values.Opset(DOMAIN, VERSION), spec.short, _schema(spec))

    def translate(*given: Any, **named: Any) -> Any:
        arguments = dict(zip((p.name for p in spec.parameters), given, strict=False)) | named
        tensors = [arguments.get(p.name) for p in spec.tensors]
        while tensors and tensors[-1] is None:
            tensors.pop()
        attributes = {
            p.name: KINDS[p.kind](arguments.get(p.name, p.default)) for p in spec.attributes
        }
        return call(*tensors, **attributes, **{PLACE: next(places)})

    return translate


def _schema(spec: KernelSpec) -> OpSchema:
    """What torch.onnx wants to know of the operator; it is registered nowhere."""
    option = OpSchema.FormalParameterOption
    inputs = [
        OpSchema.FormalParameter(
            p.name, f"T{i}", param_option=option.Optional if p.optional else option.Single
        )
        for i, p in enumerate(spec.tensors)
    ]
    outputs = [OpSchema.FormalParameter(f"y{i}", f"Y{i}") for i in range(spec.outputs)]
    attributes = {p.name: ATTRIBUTE[p.kind] for p in spec.attributes} | {PLACE: ATTRIBUTE["int"]}
    return OpSchema(
        spec.short,
        DOMAIN,
        VERSION,
        inputs=inputs,
        outputs=outputs,
        type_constraints=[(formal.type_str, ANY, "any") for formal in (*inputs, *outputs)],
        attributes=[OpSchema.Attribute(n, k, required=True) for n, k in attributes.items()],
    )


def finish(model: ModelProto, program: Program, translate: Translate | None) -> None:
    """Take the marks off the kernels' nodes and, with `translate`, give each its body."""
    known = list(kernel_nodes(program.exported))
    bodies: dict[str, dict[bytes, str]] = {}
    for node in model.graph.node:
        if node.domain != DOMAIN:
            continue
        place = _take_place(node)
        if translate is None:
            continue
        if place >= len(known) or known[place][1].short != node.op_type:
            raise EngineError(f"torch.onnx reordered the plugin kernels: {node.name}.")
        function = _function(known[place][1], known[place][0], translate)
        overloads = bodies.setdefault(node.op_type, {})
        text = function.SerializeToString(deterministic=True)
        if text not in overloads:
            overloads[text] = str(len(overloads)) if overloads else ""
            function.overload = overloads[text]
            model.functions.append(function)
        node.overload = overloads[text]


def _take_place(node: NodeProto) -> int:
    (mark,) = [attribute for attribute in node.attribute if attribute.name == PLACE]
    place = int(mark.i)
    node.attribute.remove(mark)
    return place


def _function(spec: KernelSpec, node: Node, translate: Translate) -> FunctionProto:
    """The plain function for a node's shapes, dtypes and attributes."""
    arguments: dict[str, Any] = dict(
        zip((p.name for p in spec.parameters), node.args, strict=False)
    )
    arguments |= node.kwargs
    tensors = {p.name: arguments.get(p.name) for p in spec.tensors}
    given = {name: value.meta["val"] for name, value in tensors.items() if value is not None}
    attributes = {p.name: arguments.get(p.name, p.default) for p in spec.attributes}
    with torch.no_grad():
        exported = torch.export.export(
            _Body(spec, list(given), attributes),
            tuple(map(_example, given.values())),
            dynamic_shapes=(tuple(map(_varying, given.values())),),
        )
    model = translate(exported)
    graph = model.graph
    taken = {name: value.name for name, value in zip(given, graph.input, strict=True)}
    used = list(tensors)[: max(list(tensors).index(name) for name in given) + 1]
    return helper.make_function(
        DOMAIN,
        spec.short,
        [taken.get(name, f"absent_{name}") for name in used],
        [value.name for value in graph.output],
        [*map(_constant, graph.initializer), *map(_bare, graph.node)],
        [entry for entry in model.opset_import if entry.domain != DOMAIN],
    )


def _example(value: torch.Tensor) -> torch.Tensor:
    """Zeros of the shape that the program was captured with."""
    return torch.zeros([_hint(size) for size in value.shape], dtype=value.dtype)


def _hint(size: int | torch.SymInt) -> int:
    return int(size.node.hint) if isinstance(size, torch.SymInt) else int(size)


def _varying(value: torch.Tensor) -> dict[int, Any]:
    symbolic = [axis for axis, size in enumerate(value.shape) if isinstance(size, torch.SymInt)]
    return dict.fromkeys(symbolic, Dim.AUTO)


def _constant(tensor: TensorProto) -> NodeProto:
    return helper.make_node("Constant", [], [tensor.name], tensor.name, value=tensor)


def _bare(node: NodeProto) -> NodeProto:
    del node.metadata_props[:]
    return node


class _Body(torch.nn.Module):
    """The plain function with its attributes bound, of the tensors that are given."""

    def __init__(self, spec: KernelSpec, names: list[str], attributes: Mapping[str, Any]) -> None:
        super().__init__()
        self.spec, self.names, self.attributes = spec, names, dict(attributes)

    def forward(self, *tensors: torch.Tensor) -> Any:
        """What the kernel computes."""
        given = dict(zip(self.names, tensors, strict=True))
        return self.spec.reference(**given, **self.attributes)
