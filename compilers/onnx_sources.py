"""Where the nodes of an ONNX file come from, and names that survive an engine's optimiser."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

import onnx
from torch.fx import Node

from sdk.compilers.program import Program, SourceLine, owner_of, user_line


def node_sources(model: onnx.ModelProto, program: Program) -> dict[str, SourceLine]:
    """Source of each node; a node of which nothing is known belongs to the operator before."""
    nodes = {n.name: n for n in program.exported.graph.nodes if n.op == "call_function"}
    takers = dict(_takers(program))
    sources: dict[str, SourceLine] = {}
    last = SourceLine("", "", "")
    for node in model.graph.node:
        last = _source(node, nodes, takers) or last
        sources[node.name] = last
    return sources


def name_values(graph: onnx.GraphProto) -> None:
    """Give each inner value the name of its node: engines name fused operators after values."""
    nodes = list(graph.node)
    if any(attribute.type in _GRAPHS for node in nodes for attribute in node.attribute):
        return  # a nested graph uses values of this one by name
    fixed = {value.name for value in (*graph.input, *graph.output, *graph.initializer)}
    new = {
        old: node.name if len(node.output) == 1 else f"{node.name}.{index}"
        for node in nodes
        for index, old in enumerate(node.output)
        if old and old not in fixed
    }
    if len(set(new.values()) | fixed) != len(new) + len(fixed):
        return
    for node in nodes:
        node.input[:] = [new.get(name, name) for name in node.input]
        node.output[:] = [new.get(name, name) for name in node.output]


# %relu : [num_users=1] = call_function[target=torch.ops.aten.relu.default](args = ...
NOTED = re.compile(r"%(\w+) .*?target=(?:torch\.ops\.)?([\w.]+)")
_GRAPHS = (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS)


def _source(
    node: onnx.NodeProto, nodes: dict[str, Node], takers: dict[str, Node]
) -> SourceLine | None:
    """From the weights of a node that was folded of several, else from what torch.onnx noted.

    torch.onnx decomposes operators under new names, so its notes count and not its names; but it
    notes no module on the quantizer's own Q/DQ nodes, which keep their names.
    """
    notes = {prop.key: prop.value for prop in node.metadata_props}
    folded = "pkg.onnxscript.rewriter.rule_name" in notes
    for name in node.input:
        if folded and name in takers:
            return owner_of(takers[name])
    match = NOTED.match(notes.get("pkg.torch.onnx.fx_node", ""))
    if match is None:
        return None
    name, operator = match.groups()
    if operator.startswith(("quantized_decomposed", "torchao")) and name in nodes:
        return owner_of(nodes[name])
    scopes = ast.literal_eval(notes.get("pkg.torch.onnx.name_scopes", "[]"))
    line = user_line(notes.get("pkg.torch.onnx.stack_trace", ""))
    return SourceLine(scopes[-2] if len(scopes) > 1 else "", operator, line)


def _takers(program: Program) -> Iterator[tuple[str, Node]]:
    """Parameter -> the operator that takes it."""
    parameters = program.exported.graph_signature.inputs_to_parameters
    for node in program.exported.graph.nodes:
        if node.op == "placeholder" and node.name in parameters and node.users:
            yield parameters[node.name], next(iter(node.users))
