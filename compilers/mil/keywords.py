"""Keyword arguments that coremltools' translations do not read, said with operators that they do.

coremltools 9 takes `gelu(x, approximate="tanh")` for the exact one, `add(x, y, alpha=2)` for a sum
and `sum(x, dtype=...)` for one of x's own type, without a word. (The list was made by looking for
each keyword of torch's schemas in the source of the translation.)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.fx import Node

aten = torch.ops.aten
SCALED: dict[Any, int] = {aten.add.Tensor: 1, aten.sub.Tensor: 1, aten.rsub.Tensor: 0}
# Reductions compute in the dtype that they name.
REDUCED = {
    aten.sum.default, aten.sum.dim_IntList, aten.mean.default, aten.mean.dim, aten.cumprod.default,
    aten.linalg_vector_norm.default, aten.prod.default, aten.prod.dim_int, aten.cumsum.default,
}  # fmt: skip
# Of the others the result is of that dtype.
MADE = {
    aten.arange.default, aten.arange.start, aten.arange.start_step, aten.empty.memory_format,
    aten.empty_like.default, aten.eye.default, aten.eye.m, aten.full_like.default,
    aten.hann_window.default, aten.linspace.default, aten.new_empty.default, aten.new_full.default,
    aten.new_zeros.default, aten.scalar_tensor.default, aten.zeros.default, aten.zeros_like.default,
}  # fmt: skip


def spell_out(program: ExportedProgram) -> None:
    """Rewrite, in place, the operators whose keywords would be dropped."""
    for node in list(program.graph.nodes):
        for operators, keyword, rewrite in RULES:
            if node.op == "call_function" and node.target in operators and keyword in node.kwargs:
                rewrite(node)


def insert(before: Node, target: Any, args: tuple[Any, ...], value: Any, **kwargs: Any) -> Node:
    """A call right before a node, told to come from where that node does."""
    with before.graph.inserting_before(before):
        made = before.graph.call_function(target, args, kwargs)
    made.meta = {**before.meta, "val": value}
    return made


def _without(node: Node, keyword: str) -> Any:
    value = node.kwargs[keyword]
    node.kwargs = {key: kept for key, kept in node.kwargs.items() if key != keyword}
    return value


def _scale(node: Node) -> None:
    """The operand times alpha."""
    alpha, index = _without(node, "alpha"), SCALED[node.target]
    operand = node.args[index]
    if alpha == 1 or not isinstance(operand, Node):
        return
    product = insert(node, aten.mul.Tensor, (operand, alpha), operand.meta["val"])
    node.update_arg(index, product)


def _cast_operand(node: Node) -> None:
    dtype, operand = _without(node, "dtype"), node.args[0]
    assert isinstance(operand, Node)
    if dtype is not None and operand.meta["val"].dtype != dtype:
        value = operand.meta["val"].to(dtype)
        node.update_arg(0, insert(node, aten._to_copy.default, (operand,), value, dtype=dtype))


def _cast_result(node: Node) -> None:
    dtype, users = _without(node, "dtype"), list(node.users)
    if dtype is None:
        return
    with node.graph.inserting_after(node):
        cast = node.graph.call_function(aten._to_copy.default, (node,), {"dtype": dtype})
    cast.meta = dict(node.meta)
    for user in users:
        user.replace_input_with(node, cast)


def _repeat_heads(node: Node) -> None:
    """Grouped-query attention: each key and value serves several heads."""
    if not _without(node, "enable_gqa"):
        return
    heads = node.args[0].meta["val"].shape[-3]  # type: ignore[union-attr]
    for index in (1, 2):
        shared = node.args[index]
        assert isinstance(shared, Node)
        value = shared.meta["val"]
        count = heads // value.shape[-3]
        if count > 1:
            spread = value.repeat_interleave(count, -3)
            args = (shared, count, value.dim() - 3)
            node.update_arg(index, insert(node, aten.repeat_interleave.self_int, args, spread))


RULES: tuple[tuple[Any, str, Callable[[Node], None]], ...] = (
    (SCALED, "alpha", _scale),
    (REDUCED, "dtype", _cast_operand),
    (MADE, "dtype", _cast_result),
    ({aten.scaled_dot_product_attention.default}, "enable_gqa", _repeat_heads),
)
