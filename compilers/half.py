"""A program in half precision: fp16 or bf16 inside, inputs and outputs as before.

What depends on neither activations nor weights stays in float32 up to where it meets them: tables
of sines, relative positions, masks. Half precision holds whole positions only up to 2048, and their
products with frequencies lose much earlier.
"""

from __future__ import annotations

import operator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.utils import _pytree as pytree

from sdk.compilers.program import Feed, Program
from sdk.compilers.reexport import reexport

DTYPE = {"fp16": torch.float16, "bf16": torch.bfloat16}
CHECK = torch.ops.aten._assert_tensor_metadata.default
STANDS_FOR_INFINITY = 1e8  # larger numbers are those of masks


def to_half(program: Program, precision: str, feed: Feed) -> Program:
    """`program` computed at `precision`; the signature stays, values are cast at the border.

    Made once for a program: engines that read the same file then share it too.
    """
    if precision not in program.lowered:
        program.lowered[precision] = _to_half(program, precision, feed)
    made: Program = program.lowered[precision]
    return made


def _to_half(program: Program, precision: str, feed: Feed) -> Program:
    graph = program.exported.module(check_guards=False)
    own = {name: tensor.detach().clone() for name, tensor in graph.state_dict().items()}
    graph.load_state_dict(own, assign=True)  # the program's own parameters stay as they are
    _halve(graph, DTYPE[precision])
    module = Cast(graph, DTYPE[precision])
    return replace(reexport(module, program, feed), precision=precision, base=program)


def _halve(graph: GraphModule, dtype: torch.dtype) -> None:
    for node in [node for node in graph.graph.nodes if node.target is CHECK]:
        graph.graph.erase_node(node)  # it compares with the dtype of before
    exact = _exact(graph)
    for node in list(graph.graph.nodes):
        if node.op == "get_attr":
            _halve_tensor(graph, node, exact, dtype)
        elif node.op == "call_function":
            _halve_operator(node, exact, dtype)
    graph.graph.lint()
    graph.recompile()


def _exact(graph: GraphModule) -> set[Node]:
    """Nodes that depend on integers, sizes and constants only, and on no parameter."""
    exact: set[Node] = set()
    for node in graph.graph.nodes:
        if node.op == "placeholder":
            known = not _is_float(node)
        elif node.op == "get_attr":
            known = not isinstance(operator.attrgetter(str(node.target))(graph), nn.Parameter)
        else:
            known = node.op == "call_function" and (
                not isinstance(node.meta.get("val"), (Tensor, list, tuple))
                or exact.issuperset(node.all_input_nodes)
            )
        if known:
            exact.add(node)
    return exact


def _is_float(node: Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, Tensor) and value.dtype == torch.float32


def _halve_tensor(graph: GraphModule, node: Node, exact: set[Node], dtype: torch.dtype) -> None:
    """A weight becomes half; a constant does if only what is half reads it."""
    tensor = operator.attrgetter(str(node.target))(graph)
    if not isinstance(tensor, Tensor) or tensor.dtype != torch.float32:
        return
    bounded = _bounded(tensor, dtype)
    if exact.isdisjoint(node.users):
        exact.discard(node)
        bounded = bounded.to(dtype)
    path, _, leaf = str(node.target).rpartition(".")
    holder = graph.get_submodule(path)
    if isinstance(tensor, nn.Parameter):
        setattr(holder, leaf, nn.Parameter(bounded, requires_grad=False))
    else:
        setattr(holder, leaf, bounded)
    if node in exact:
        _cast_behind(node, exact, dtype)


def _halve_operator(node: Node, exact: set[Node], dtype: torch.dtype) -> None:
    """It works in half: what names float32, such as a state of zeros, names `dtype`."""
    largest = torch.finfo(dtype).max
    if node in exact:
        if _is_float(node):
            bound(node, STANDS_FOR_INFINITY, largest)
            _cast_behind(node, exact, dtype)
        return
    node.args, node.kwargs = pytree.tree_map_only(
        torch.dtype,
        lambda old: dtype if old == torch.float32 else old,
        (node.args, node.kwargs),
    )
    if _is_float(node):
        bound(node, largest, largest)


def bound(node: Node, limit: float, largest: float) -> None:
    """Finite numbers beyond `limit` become the largest: an infinity in a mask gives NaN."""
    node.args, node.kwargs = pytree.tree_map_only(
        float,
        lambda x: max(-largest, min(x, largest)) if limit < abs(x) < float("inf") else x,
        (node.args, node.kwargs),
    )


def _bounded(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    largest = torch.finfo(dtype).max
    value = tensor.detach()
    return torch.where(value.isfinite(), value.clamp(-largest, largest), value)


def _cast_behind(node: Node, exact: set[Node], dtype: torch.dtype) -> None:
    """Those that work in half read a cast of the exact value."""
    readers = [user for user in node.users if user not in exact and user.op == "call_function"]
    if not readers:
        return
    with node.graph.inserting_after(node):
        cast = node.graph.call_function(torch.ops.aten.to.dtype, (node, dtype))
        cast.meta = dict(node.meta)
    for reader in readers:
        reader.replace_input_with(node, cast)


class Cast(nn.Module):
    """Casts floats on the way in to `dtype`, and back on the way out."""

    def __init__(self, module: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.module, self.dtype = module, dtype

    def forward(self, *inputs: Tensor) -> Any:
        """Same inputs and outputs as the wrapped module."""
        # .forward: the exported module's own check wants the keywords that it was captured with
        result = self.module.forward(*(_to(x, torch.float32, self.dtype) for x in inputs))
        return pytree.tree_map(lambda value: _to(value, self.dtype, torch.float32), result)


def _to(value: Tensor, of: torch.dtype, dtype: torch.dtype) -> Tensor:
    return value.to(dtype) if value.dtype == of else value
