"""Translations of PyTorch operators that coremltools lacks, or has for some cases only.

Each takes coremltools' context and node and adds the result to the context under the node's name.
Importing this registers them all.
"""

from __future__ import annotations

from typing import Any

from coremltools.converters.mil import Builder as mb  # noqa: N813
from coremltools.converters.mil.frontend.torch.ops import _get_inputs
from coremltools.converters.mil.mil import types
from coremltools.converters.mil.mil.ops.defs._utils import promote_input_dtypes

from sdk.compilers.mil.frontend import translates


@translates("alias")
def same_value(context: Any, node: Any) -> None:
    """A view of a whole tensor; also how one value becomes two outputs."""
    (x,) = _get_inputs(context, node, expected=1)
    context.add(mb.identity(x=x, name=node.name))


@translates()
def gelu(context: Any, node: Any) -> None:
    """Exact, or by tanh where the keyword says so: coremltools only reads a second argument."""
    (x,) = _get_inputs(context, node, expected=1)
    (named,) = (node.kwinputs or {}).get("approximate", ("none",))
    mode = {"none": "EXACT", "tanh": "TANH_APPROXIMATION"}[named]
    context.add(mb.gelu(x=x, mode=mode, name=node.name))


@translates()
def embedding(context: Any, node: Any) -> None:
    """Rows of a table, without int32 arithmetic for negative indices, which it never has."""
    table, indices = _get_inputs(context, node)[:2]
    context.add(mb.gather(x=table, indices=indices, axis=0, name=node.name))


@translates()
def bitwise_or(context: Any, node: Any) -> None:
    """Of flags only: Core ML has no bits of whole numbers."""
    x, y = _flags(context, node)
    context.add(mb.logical_or(x=x, y=y, name=node.name))


@translates()
def bitwise_xor(context: Any, node: Any) -> None:
    """Of flags only: Core ML has no bits of whole numbers."""
    x, y = _flags(context, node)
    context.add(mb.logical_xor(x=x, y=y, name=node.name))


@translates("where.self")
def where(context: Any, node: Any) -> None:
    """One of two numbers takes the condition's shape: MIL would call the result a number, too."""
    condition, a, b = _get_inputs(context, node, expected=3)
    a, b = promote_input_dtypes([a, b])
    if a.rank == b.rank == 0 and condition.rank:
        dtype = types.builtin_to_string(a.dtype)
        a = mb.add(
            x=mb.mul(x=mb.cast(x=condition, dtype=dtype), y=types.nptype_from_builtin(a.dtype)(0)),
            y=a,
        )
    context.add(mb.select(cond=_as_flags(condition), a=a, b=b, name=node.name))


def _as_flags(condition: Any) -> Any:
    return condition if types.is_bool(condition.dtype) else mb.cast(x=condition, dtype="bool")


@translates("prod.dim_int")
def prod(context: Any, node: Any) -> None:
    """Over one axis, or over all."""
    x, *rest = _get_inputs(context, node)
    axes = [rest[0].val] if rest else None
    keep = bool(rest[1].val) if len(rest) > 1 else False
    context.add(mb.reduce_prod(x=x, axes=axes, keep_dims=keep, name=node.name))


def _flags(context: Any, node: Any) -> list[Any]:
    operands: list[Any] = _get_inputs(context, node, expected=2)
    if not all(types.is_bool(operand.dtype) for operand in operands):
        raise NotImplementedError("bits of whole numbers")
    return operands


@translates()
def clamp_min(context: Any, node: Any) -> None:
    """Of whole numbers too, and with a bound of another type."""
    x, low = promote_input_dtypes(_get_inputs(context, node, expected=2))
    context.add(mb.maximum(x=x, y=low, name=node.name))


@translates()
def clamp_max(context: Any, node: Any) -> None:
    """Of whole numbers too, and with a bound of another type."""
    x, high = promote_input_dtypes(_get_inputs(context, node, expected=2))
    context.add(mb.minimum(x=x, y=high, name=node.name))
