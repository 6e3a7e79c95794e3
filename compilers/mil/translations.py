"""Translations of PyTorch operators that coremltools lacks, or has for some cases only.

Each takes coremltools' context and node and adds the result to the context under the node's name.
Importing this registers them all.
"""

from __future__ import annotations

from typing import Any

from coremltools.converters.mil import Builder as mb  # noqa: N813
from coremltools.converters.mil.frontend.torch.ops import _get_inputs
from coremltools.converters.mil.frontend.torch.torch_op_registry import register_torch_op
from coremltools.converters.mil.mil.ops.defs._utils import promote_input_dtypes


@register_torch_op(torch_alias=["alias"], override=True)
def same_value(context: Any, node: Any) -> None:
    """A view of a whole tensor; also how one value becomes two outputs."""
    (x,) = _get_inputs(context, node, expected=1)
    context.add(mb.identity(x=x, name=node.name))


@register_torch_op(override=True)
def gelu(context: Any, node: Any) -> None:
    """Exact, or by tanh where the keyword says so: coremltools only reads a second argument."""
    (x,) = _get_inputs(context, node, expected=1)
    (named,) = (node.kwinputs or {}).get("approximate", ("none",))
    mode = {"none": "EXACT", "tanh": "TANH_APPROXIMATION"}[named]
    context.add(mb.gelu(x=x, mode=mode, name=node.name))


@register_torch_op(override=True)
def embedding(context: Any, node: Any) -> None:
    """Rows of a table, without int32 arithmetic for negative indices, which it never has."""
    table, indices = _get_inputs(context, node)[:2]
    context.add(mb.gather(x=table, indices=indices, axis=0, name=node.name))


@register_torch_op(override=True)
def clamp_min(context: Any, node: Any) -> None:
    """Of whole numbers too, and with a bound of another type."""
    x, low = promote_input_dtypes(_get_inputs(context, node, expected=2))
    context.add(mb.maximum(x=x, y=low, name=node.name))


@register_torch_op(override=True)
def clamp_max(context: Any, node: Any) -> None:
    """Of whole numbers too, and with a bound of another type."""
    x, high = promote_input_dtypes(_get_inputs(context, node, expected=2))
    context.add(mb.minimum(x=x, y=high, name=node.name))
