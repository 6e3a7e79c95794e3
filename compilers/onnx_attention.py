"""Scaled dot product attention as ONNX operators, with the values that PyTorch gives.

torch's own translation lets a query whose keys are all masked average the values; PyTorch gives it
zeros. Padded positions under a sliding window are such queries, and later layers read them.
"""

from __future__ import annotations

import math
from typing import Any

import onnx_ir as ir
from onnxscript import opset20

op: Any = opset20  # its stubs take no plain lists, which the translation turns into constants


def attention(
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    _dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    """The translation of aten.scaled_dot_product_attention, for inference.

    query: ... x L x E, key: ... x S x E, value: ... x S x V. A mask is bool (true takes part) or
    added to the scores, and broadcast to ... x L x S.
    """
    if enable_gqa and query.shape[-3] != key.shape[-3]:
        key, value = (_repeat(x, query.shape[-3] // x.shape[-3]) for x in (key, value))
    axes = list(range(len(query.shape)))
    axes[-2:] = axes[:-3:-1]
    factor = math.sqrt(1 / math.sqrt(query.shape[-1]) if scale is None else scale)
    root = op.Constant(value=ir.tensor(factor, dtype=query.dtype))
    # Each side by the root: in fp16 the plain products could overflow.
    scores = op.MatMul(op.Mul(query, root), op.Transpose(op.Mul(key, root), perm=axes))
    if is_causal:
        weights = _masked_softmax(scores, _causal(query, key), query.dtype)
    elif attn_mask is None:
        weights = op.Softmax(scores, axis=-1)
    elif attn_mask.dtype == ir.DataType.BOOL:
        weights = _masked_softmax(scores, attn_mask, query.dtype)
    else:
        weights = op.Softmax(op.Add(scores, attn_mask), axis=-1)
    return op.MatMul(weights, value)


def _masked_softmax(scores: Any, mask: Any, dtype: ir.DataType) -> Any:
    """Softmax over the keys that take part: zeros where there is none, without an infinity."""
    low = op.Constant(value=ir.tensor(dtype.min, dtype=dtype))
    zero = op.Constant(value=ir.tensor(0.0, dtype=dtype))
    weights = op.Softmax(op.Where(mask, scores, low), axis=-1)
    return op.Where(mask, weights, zero)


def _causal(query: Any, key: Any) -> Any:
    """bool, L x S: true up to the diagonal."""
    rows, columns = (_positions(x) for x in (query, key))
    return op.GreaterOrEqual(op.Unsqueeze(rows, [1]), op.Unsqueeze(columns, [0]))


def _positions(tensor: Any) -> Any:
    """0, 1, ... along the last axis but one."""
    count = op.Squeeze(op.Shape(tensor, start=-2, end=-1), [0])
    return op.Range(op.Constant(value_int=0), count, op.Constant(value_int=1))


def _repeat(tensor: Any, times: int) -> Any:
    """... x H x S x E with each head `times` times in a row."""
    *lead, heads, _, width = tensor.shape
    axis = len(lead) + 1
    copies = op.Concat(*[op.Unsqueeze(tensor, [axis])] * times, axis=axis)
    kept = [0] * len(lead)
    return op.Reshape(copies, op.Constant(value_ints=[*kept, heads * times, -1, width]))
