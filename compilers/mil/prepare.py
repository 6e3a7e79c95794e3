"""An exported program brought into the form that coremltools translates.

Operators that coremltools has no translation for are taken apart by torch's own decompositions,
those and no others: a whole `linear` becomes a better Core ML operator than its parts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch._decomp import core_aten_decompositions, decomposition_table
from torch._ops import OpOverload
from torch.export import ExportedProgram
from torch.fx import Node
from torch.utils._pytree import tree_leaves

from sdk.compilers.mil.frontend import is_translated
from sdk.compilers.mil.keywords import insert, spell_out

aten = torch.ops.aten
# Dtypes that a Core ML model has no inputs or outputs of: they cross its border as int32.
AS_INT32 = (torch.bool, torch.uint8, torch.int8, torch.int16)
ROUNDS = 4  # a decomposition may bring operators that need one themselves


def prepare(exported: ExportedProgram) -> ExportedProgram:
    """A copy of `exported` for coremltools: decomposed, functional, with borders Core ML has."""
    program: ExportedProgram = exported.run_decompositions({})
    for _ in range(ROUNDS):
        table = dict(_decompositions(program))
        if not table:
            break
        program = program.run_decompositions(table)
    spell_out(program)
    _silence_masked_queries(program)
    _drop_checks(program)
    _free_words(program)
    _read_inputs_as_int32(program)
    _shape_outputs(program)
    program.graph_module.recompile()
    return program


def _decompositions(program: ExportedProgram) -> Iterator[tuple[Any, Callable[..., Any]]]:
    """Operators of the program without a translation -> torch's decomposition."""
    core = core_aten_decompositions()
    for target in {node.target for node in _calls(program)}:
        if isinstance(target, OpOverload) and not is_translated(target):
            found = OWN.get(target) or decomposition_table.get(target) or core.get(target)
            if found is not None:
                yield target, found


def _diff(
    x: Tensor,
    n: int = 1,
    dim: int = -1,
    prepend: Tensor | None = None,
    append: Tensor | None = None,
) -> Tensor:
    """Differences of neighbours, n times."""
    parts = [part for part in (prepend, x, append) if part is not None]
    x = torch.cat(parts, dim) if len(parts) > 1 else x
    for _ in range(n):
        size = x.shape[dim]
        x = x.narrow(dim, 1, size - 1) - x.narrow(dim, 0, size - 1)
    return x


def _where(condition: Tensor, a: Tensor | complex, b: Tensor | complex) -> Tensor:
    """Numbers as tensors of the type that both have in common."""
    dtype = torch.result_type(a, b)
    choices = (x if isinstance(x, Tensor) else torch.full((), x, dtype=dtype) for x in (a, b))
    return aten.where.self(condition, *(choice.to(dtype) for choice in choices))  # type: ignore[no-any-return]


# What torch has no decomposition of, or one that ends in what coremltools lacks.
OWN: dict[OpOverload, Callable[..., Any]] = {
    aten.__and__.Tensor: aten.bitwise_and.Tensor,
    aten.__or__.Tensor: aten.bitwise_or.Tensor,
    aten.__xor__.Tensor: aten.bitwise_xor.Tensor,
    aten.diff.default: _diff,
    **dict.fromkeys((aten.where.ScalarOther, aten.where.ScalarSelf, aten.where.Scalar), _where),
}


def _calls(program: ExportedProgram) -> list[Node]:
    return [node for node in program.graph.nodes if node.op == "call_function"]


def _drop_checks(program: ExportedProgram) -> None:
    """Assertions about sizes say nothing to an engine."""
    for node in reversed(_calls(program)):
        if "assert" in str(node.target) and not node.users:
            program.graph.erase_node(node)


def _silence_masked_queries(program: ExportedProgram) -> None:
    """A query whose keys are all masked gives zeros, as in PyTorch; Core ML averages the values.

    Padded positions under a sliding window are such queries, and later layers read them.
    """
    for node in _calls(program):
        mask = node.args[3] if len(node.args) > 3 else node.kwargs.get("attn_mask")
        if node.target is not aten.scaled_dot_product_attention.default or mask is None:
            continue
        assert isinstance(mask, Node)
        flags, result = mask.meta["val"], node.meta["val"]
        if flags.dtype != torch.bool:
            continue
        users, after = list(node.users), node.next
        number = flags.to(result.dtype)
        taken = insert(after, aten._to_copy.default, (mask,), number, dtype=result.dtype)
        alive = insert(after, aten.amax.default, (taken, [-1], True), number.amax(-1, True))
        product = insert(after, aten.mul.Tensor, (node, alive), result)
        for made in (taken, alive, product):
            made.meta = {**node.meta, "val": made.meta["val"]}
        for user in users:
            user.replace_input_with(node, product)


def _free_words(program: ExportedProgram) -> None:
    """No operator has the name of a text argument: coremltools would take it for the argument."""
    arguments = (leaf for node in _calls(program) for leaf in tree_leaves((node.args, node.kwargs)))
    words = {leaf for leaf in arguments if isinstance(leaf, str)}
    for node in _calls(program):
        if node.name in words:
            node._rename(f"value_of_{node.name}")


def _read_inputs_as_int32(program: ExportedProgram) -> None:
    """Flags and small whole numbers come in as int32 and are cast to what the program reads."""
    inputs = set(program.graph_signature.user_inputs)
    for node in list(program.graph.nodes):
        if node.op != "placeholder" or node.name not in inputs:
            continue
        value = node.meta["val"]
        if value.dtype in AS_INT32:
            _cast_behind(node, value)


def _cast_behind(node: Node, value: Tensor) -> None:
    users = list(node.users)
    with node.graph.inserting_after(node):
        cast = node.graph.call_function(aten._to_copy.default, (node,), {"dtype": value.dtype})
    cast.meta = {**node.meta, "val": value}
    node.meta["val"] = value.to(torch.int32)
    for user in users:
        user.replace_input_with(node, cast)


def _shape_outputs(program: ExportedProgram) -> None:
    """Outputs: whole numbers for flags, at least one axis, and each a value of its own."""
    (output,) = program.graph.find_nodes(op="output")
    specs = program.graph_signature.output_specs
    results = list(output.args[0])
    taken: set[Node] = set()
    for index, (spec, node) in enumerate(zip(specs, results, strict=True)):
        if not isinstance(node, Node):
            continue
        if spec.kind.name != "USER_OUTPUT":
            spec.arg.name = node.name
            continue
        fresh = _presentable(node, output)
        if fresh in taken or fresh.op == "placeholder":
            fresh = _behind(output, aten.alias.default, fresh, fresh.meta["val"])
        taken.add(fresh)
        results[index] = fresh
        spec.arg.name = fresh.name
    output.args = (tuple(results),)


def _presentable(node: Node, output: Node) -> Node:
    value = node.meta["val"]
    if value.dtype in AS_INT32:
        node = _behind(
            output, aten._to_copy.default, node, value.to(torch.int32), dtype=torch.int32
        )
    if value.dim() == 0:
        node = _behind(output, aten.unsqueeze.default, node, node.meta["val"].unsqueeze(0), 0)
    return node


def _behind(output: Node, target: Any, node: Node, value: Any, *args: Any, **kwargs: Any) -> Node:
    """A call on a result, told to come from where the result does."""
    made = insert(output, target, (node, *args), value, **kwargs)
    made.meta = {**node.meta, "val": value}
    return made
