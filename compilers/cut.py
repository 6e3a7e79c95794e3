"""The front part of a program: the same operators, ending at chosen ones."""

from __future__ import annotations

from dataclasses import replace

import torch

from sdk.compilers.program import Feed, Program
from sdk.compilers.reexport import reexport
from sdk.signature import Signature, TensorSpec


def cut(program: Program, names: list[str], feed: Feed) -> Program:
    """`program` with the values of the nodes `names` as its outputs, cast to fp32."""
    graph = program.exported.module(check_guards=False)
    nodes = {node.name: node for node in graph.graph.nodes}
    (output,) = [node for node in graph.graph.nodes if node.op == "output"]
    with graph.graph.inserting_before(output):
        ends = [
            graph.graph.call_function(torch.ops.aten.to.dtype, (nodes[name], torch.float32))
            if nodes[name].meta["val"].dtype != torch.float32
            else nodes[name]
            for name in names
        ]
    output.args = (tuple(ends),)
    graph.graph._codegen = torch.fx.graph.CodeGen()  # the old one unflattens the old outputs
    graph.graph.eliminate_dead_code()
    graph.recompile()
    outputs = tuple(TensorSpec(name, "float32", ()) for name in names)
    part = replace(program, signature=Signature(program.signature.inputs, outputs))
    return reexport(graph, part, feed)
