"""Compile for torch, the reference engine: the graph as JSON and the weights as safetensors.

torch's own `.pt2` file is not used: reading one evaluates expressions that the file brings along.
This form holds nothing but names of operators, plain arguments and tensors.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor
from torch.fx import Node

from sdk.compilers.drawing import FIX, draws
from sdk.compilers.program import Build, Program, owner_of, source_of
from sdk.compilers.weight_only_graph import packed, stored_bits
from sdk.errors import UnsupportedOperatorError
from sdk.target import Target
from sdk.torch_operators import operator_named


def compile_program(program: Program, _target: Target, folder: Path) -> Build:
    """Write `program.json` and `weights.safetensors`."""
    exported = program.exported
    nodes = [node for node in exported.graph.nodes if node.op == "call_function"]
    weights, bits = dict(_weight_names(program)), stored_bits(program)
    (output,) = exported.graph.find_nodes(op="output")
    graph = {
        "inputs": list(exported.graph_signature.user_inputs),
        "weights": {node: _entry(name, bits) for node, name in weights.items()},
        "nodes": [_node(node) for node in nodes],
        "outputs": _argument(output.args[0]),
    }
    tensors = {name: _tensor(program, name, bits.get(name, 8)) for name in weights.values()}
    (folder / "weights.safetensors").write_bytes(save(tensors))
    file = folder / "program.json"
    file.write_text(json.dumps(graph, separators=(",", ":")))
    return Build(file, {node.name: owner_of(node) for node in nodes})


def _weight_names(program: Program) -> Iterator[tuple[str, str]]:
    """Placeholder -> name of the parameter, buffer or constant behind it."""
    signature = program.exported.graph_signature
    yield from signature.inputs_to_parameters.items()
    yield from signature.inputs_to_buffers.items()
    yield from signature.inputs_to_lifted_tensor_constants.items()


def _entry(name: str, bits: Mapping[str, int]) -> str | list[str | int]:
    """A tensor's name, and where several of its integers share a byte, their bits."""
    return [name, bits[name]] if bits.get(name, 8) < 8 else name


def _tensor(program: Program, name: str, bits: int) -> Tensor:
    exported = program.exported
    tensor = exported.state_dict.get(name, exported.constants.get(name))
    assert isinstance(tensor, Tensor)
    if bits < 8:
        return torch.from_numpy(packed(tensor.numpy() & (1 << bits) - 1, bits))
    return tensor.detach().clone().contiguous()


def _node(node: Node) -> dict[str, Any]:
    return {
        "name": node.name,
        "op": _operator_name(node),
        "args": [_argument(value) for value in node.args],
        "kwargs": {key: _argument(value) for key, value in node.kwargs.items()},
    }


def _operator_name(node: Node) -> str:
    source = source_of(node)
    if operator_named(source.operator) is not None:
        return source.operator
    raise UnsupportedOperatorError(
        f"The operator {source.operator} cannot be stored for the engine 'torch'.",
        got=source,
        fix=FIX if draws(node) else "write it with ordinary tensor operators",
    )


def _argument(value: Any) -> Any:
    """Arguments as JSON; what JSON lacks is an object with one key."""
    if isinstance(value, Node):
        return {"node": value.name}
    if isinstance(value, (list, tuple)):
        return [_argument(item) for item in value]
    if isinstance(value, torch.device):
        return {"device": "session"}
    if isinstance(value, (torch.dtype, torch.memory_format, torch.layout)):
        kind = type(value).__name__
        return {kind: str(value).removeprefix("torch.")}
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": str(value)}
    return value
