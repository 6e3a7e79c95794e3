"""Translations of PyTorch operators that coremltools lacks, or has for some cases only.

Each takes coremltools' context and node and adds the result to the context under the node's name.
Importing this registers them all.
"""

from __future__ import annotations

from typing import Any

import numpy as np
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
    """One choice takes the condition's shape where neither has it: MIL does not broadcast to it."""
    condition, a, b = _get_inputs(context, node, expected=3)
    a, b = promote_input_dtypes([a, b])
    if not (_spans(a, condition) or _spans(b, condition)):
        number = types.nptype_from_builtin(a.dtype)
        zeros = mb.mul(x=mb.cast(x=condition, dtype=types.builtin_to_string(a.dtype)), y=number(0))
        a = mb.add(x=zeros, y=a)
    context.add(mb.select(cond=_as_flags(condition), a=a, b=b, name=node.name))


def _spans(x: Any, other: Any) -> bool:
    """Whether `other` broadcasts to the shape of x."""
    if x.rank < other.rank:
        return False
    pairs = zip(reversed(other.shape), reversed(x.shape), strict=False)
    return all(size == 1 or size == wide for size, wide in pairs)


def _as_flags(condition: Any) -> Any:
    return condition if types.is_bool(condition.dtype) else mb.cast(x=condition, dtype="bool")


@translates()
def group_norm(context: Any, node: Any) -> None:
    """Of shapes that vary, too: coremltools writes the sizes down as numbers."""
    x, groups, weight, bias, epsilon = _get_inputs(context, node)[:5]
    shape = mb.shape(x=x)
    batch = mb.slice_by_index(x=shape, begin=[0], end=[1])
    parts = mb.concat(values=[batch, np.array([groups.val, -1], np.int32)], axis=0)
    flat = mb.reshape(x=x, shape=parts)
    centred = mb.sub(x=flat, y=mb.reduce_mean(x=flat, axes=[2], keep_dims=True))
    spread = mb.reduce_mean(x=mb.square(x=centred), axes=[2], keep_dims=True)
    norm = mb.mul(x=centred, y=mb.rsqrt(x=spread, epsilon=epsilon.val))
    result = mb.reshape(x=norm, shape=shape)
    axes = (1, -1, *[1] * (x.rank - 2))
    if weight is not None:
        result = mb.mul(x=result, y=weight.val.reshape(axes))
    if bias is not None:
        result = mb.add(x=result, y=bias.val.reshape(axes))
    context.add(mb.identity(x=result, name=node.name))


@translates()
def layer_norm(context: Any, node: Any) -> None:
    """With an epsilon of the weight's type: coremltools leaves it in float32 beside a half one."""
    inputs = [*_get_inputs(context, node), None, None, None]
    x, shape, weight, bias, given = inputs[:5]
    number = types.nptype_from_builtin((x if weight is None else weight).dtype)
    least = float(np.finfo(number).smallest_subnormal)
    epsilon = 1e-5 if given is None else float(given.val)
    result = mb.layer_norm(
        x=x,
        axes=list(range(-len(shape.val), 0)),
        gamma=weight,
        beta=bias,
        epsilon=number(max(epsilon, least)),
        name=node.name,
    )
    context.add(result)


@translates()
def adaptive_avg_pool1d(context: Any, node: Any) -> None:
    """To one value, whatever the length; to more is for sizes that do not vary, as a mean each."""
    x, size = _get_inputs(context, node, expected=2)
    (wanted,) = size.val
    length = x.shape[-1]
    if wanted == 1:
        context.add(mb.reduce_mean(x=x, axes=[-1], keep_dims=True, name=node.name))
    elif isinstance(length, (int, np.integer)) and length % wanted == 0:
        step = int(length // wanted)
        pooled = mb.avg_pool(
            x=x, kernel_sizes=[step], strides=[step], pad_type="valid", name=node.name
        )
        context.add(pooled)
    else:
        raise NotImplementedError("means of parts of unequal lengths")


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


@translates()
def clamp(context: Any, node: Any) -> None:
    """Whole numbers stay whole: coremltools would make floats of them."""
    x, low, high = [*_get_inputs(context, node), None, None][:3]
    if low is not None and high is not None and not types.is_int(x.dtype):
        number = types.nptype_from_builtin(x.dtype)
        bounds = {"alpha": number(low.val), "beta": number(high.val)}
        context.add(mb.clip(x=x, **bounds, name=node.name))
        return
    for bound, limit in ((low, mb.maximum), (high, mb.minimum)):
        if bound is not None:
            x, value = promote_input_dtypes([x, bound])
            x = limit(x=x, y=value)
    context.add(mb.identity(x=x, name=node.name))
