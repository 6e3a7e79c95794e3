"""ONNX operators entry by entry, reductions, products of matrices, and Q/DQ, in plain torch.

Source: the formulas at https://onnx.ai/onnx/operators, opsets 7 to 24. Inputs are positional
and attributes keyword-only, under their ONNX names; an older opset's attribute that later became an
input (`axes`, `k`, `min`) fills the same parameter.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import reduce
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sdk.compilers.onnx_ops.values import DTYPES, Rule, axis_of, number, numbers


def divide(a: Tensor, b: Tensor) -> Tensor:
    """a / b; integers truncate towards zero."""
    return a / b if a.is_floating_point() else torch.div(a, b, rounding_mode="trunc")


def modulo(a: Tensor, b: Tensor, *, fmod: int = 0) -> Tensor:
    """Sign of the divisor (fmod=0), or of the dividend as in C (fmod=1)."""
    return torch.fmod(a, b) if fmod else torch.remainder(a, b)


def power(x: Tensor, y: Tensor) -> Tensor:
    """x ** y in the dtype of x."""
    return torch.pow(x, y).to(x.dtype)


def is_inf(x: Tensor, *, detect_negative: int = 1, detect_positive: int = 1) -> Tensor:
    """Bool tensor; each sign is looked for unless its flag is 0."""
    found = torch.isinf(x)
    return found & ((x < 0) & bool(detect_negative) | (x > 0) & bool(detect_positive))


def _rectified(x: Tensor, low: float | None, high: float | None) -> Tensor:
    """Clip with constant bounds, as the operator that quantizers know (relu, hardtanh, clamp)."""
    floating = x.is_floating_point()
    if floating and low is not None and high is not None and low <= high:
        return F.hardtanh(x, low, high)
    if floating and low == 0 and high is None:
        return F.relu(x)
    return x if low is None and high is None else torch.clamp(x, low, high)


def clip(x: Tensor, min: Any = None, max: Any = None) -> Tensor:
    """x within [min, max]; an absent bound does not bound; min > max gives max."""
    if isinstance(min, Tensor) or isinstance(max, Tensor):
        lower = x if min is None else torch.maximum(x, torch.as_tensor(min, dtype=x.dtype))
        return lower if max is None else torch.minimum(lower, torch.as_tensor(max, dtype=x.dtype))
    low = None if min is None else number(min)
    high = None if max is None else number(max)
    return _rectified(x, low, high)


def selu(
    x: Tensor, *, alpha: float = 1.67326319217681884765625, gamma: float = 1.05070102214813232421875
) -> Tensor:
    """gamma * (alpha * exp(x) - alpha) below zero, gamma * x above."""
    return gamma * F.elu(x, alpha)


def hard_sigmoid(x: Tensor, *, alpha: float = 0.2, beta: float = 0.5) -> Tensor:
    """max(0, min(1, alpha * x + beta)); with alpha = 1/6 it is torch's."""
    if math.isclose(alpha, 1 / 6, rel_tol=1e-6) and beta == 0.5:
        return F.hardsigmoid(x)
    return torch.clamp(alpha * x + beta, 0.0, 1.0)


def prelu(x: Tensor, slope: Tensor) -> Tensor:
    """slope * x below zero; one slope, or one per channel, is torch's own prelu."""
    per_channel = slope.dim() == x.dim() - 1 and slope.shape[0] == slope.numel() == x.shape[1]
    if x.dim() >= 2 and (slope.numel() == 1 or per_channel):
        return F.prelu(x, slope.reshape(-1))
    return torch.where(x < 0, slope * x, x)


def thresholded(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    """x above alpha, zero elsewhere."""
    return torch.where(x > alpha, x, torch.zeros_like(x))


def shrink(x: Tensor, *, bias: float = 0.0, lambd: float = 0.5) -> Tensor:
    """x + bias below -lambd, x - bias above lambd, zero between."""
    outer = torch.where(x < -lambd, x + bias, torch.zeros_like(x))
    return torch.where(x > lambd, x - bias, outer)


def swish(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    """x * sigmoid(alpha * x)."""
    return F.silu(x) if alpha == 1.0 else x * torch.sigmoid(alpha * x)


def hardmax(x: Tensor, *, axis: int = -1) -> Tensor:
    """1 at the first maximum along the axis, 0 elsewhere."""
    first = torch.argmax(x, dim=axis, keepdim=True)
    return torch.zeros_like(x).scatter(axis, first, 1.0)


def flattened(rule: Rule) -> Rule:
    """Softmax and its like before opset 13: over all axes from `axis` on, taken as one."""

    def over_rows(x: Tensor, *, axis: int = 1) -> Any:
        rows = torch.flatten(x, axis_of(axis, x.dim()))
        return rule(rows, axis=-1).reshape(x.shape)

    return over_rows


def reduction(reduce_over: Callable[[Tensor, list[int], bool], Tensor]) -> Rule:
    """ONNX Reduce*: `axes` as attribute or input, absent meaning all."""

    def rule(
        x: Tensor, axes: Any = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0
    ) -> Tensor:
        named = [] if axes is None else [axis_of(a, x.dim()) for a in numbers(axes)]
        if not named and noop_with_empty_axes:
            return x
        return reduce_over(x, named or list(range(x.dim())), bool(keepdims))

    return rule


def _product(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    for axis in sorted(axes, reverse=True):
        x = torch.prod(x, axis, keepdim=keep)
    return x


def arg(best: Callable[..., Tensor]) -> Rule:
    """ArgMax and ArgMin, int64; the first of equals, or the last on request."""

    def rule(x: Tensor, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0) -> Tensor:
        if not select_last_index:
            return best(x, dim=axis, keepdim=bool(keepdims))
        return x.shape[axis] - 1 - best(x.flip(axis), dim=axis, keepdim=bool(keepdims))

    return rule


def top_k(
    x: Tensor, k: Any, *, axis: int = -1, largest: int = 1, sorted: int = 1
) -> tuple[Tensor, Tensor]:
    """Values and int64 indices of the k best; the order of equals is torch.topk's."""
    values, indices = torch.topk(x, number(k), dim=axis, largest=bool(largest), sorted=bool(sorted))
    return values, indices


def cumulative_sum(x: Tensor, axis: Any, *, exclusive: int = 0, reverse: int = 0) -> Tensor:
    """Running sum along one axis, from the end on request; exclusive leaves out the entry."""
    dim = number(axis)
    ordered = x.flip(dim) if reverse else x
    total = torch.cumsum(ordered, dim, dtype=x.dtype)
    total = total - ordered if exclusive else total
    return total.flip(dim) if reverse else total


def gemm(
    a: Tensor,
    b: Tensor,
    c: Tensor | None = None,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    transA: int = 0,  # noqa: N803  the attribute's name in ONNX
    transB: int = 0,  # noqa: N803
) -> Tensor:
    """alpha * A' B' + beta * C; a fully connected layer where it is one."""
    left = a.t() if transA else a
    fits = c is None or (beta == 1.0 and c.dim() == 1 and c.shape[0] == b.shape[0])
    if transB and alpha == 1.0 and fits:
        return F.linear(left, b, c)
    scaled = torch.matmul(left, b.t() if transB else b)
    scaled = scaled if alpha == 1.0 else alpha * scaled
    return scaled if c is None else scaled + (c if beta == 1.0 else beta * c)


def matmul(a: Tensor, b: Tensor, *, transB: int = 0) -> Tensor:  # noqa: N803
    """A B as numpy.matmul; transB marks a constant 2-D B that the importer stored transposed."""
    return F.linear(a, b) if transB else torch.matmul(a, b)


def _along(scale: Tensor, x: Tensor, axis: int) -> Tensor:
    """A per-axis vector shaped so that it broadcasts against x."""
    if scale.dim() == 0 or scale.numel() == 1:
        return scale.reshape(())
    sizes = [1] * x.dim()
    sizes[axis] = -1
    return scale.reshape(sizes)


def quantize(
    x: Tensor, scale: Tensor, zero_point: Tensor | None = None, *, axis: int = 1
) -> Tensor:
    """saturate(round_half_even(x / scale) + zero_point); uint8 where no zero point is given."""
    dtype = torch.uint8 if zero_point is None else zero_point.dtype
    steps = torch.round(x / _along(scale, x, axis))
    if zero_point is not None:
        steps = steps + _along(zero_point, x, axis).to(steps.dtype)
    limits = torch.iinfo(dtype)
    return torch.clamp(steps, limits.min, limits.max).to(dtype)


def dequantize(
    x: Tensor, scale: Tensor, zero_point: Tensor | None = None, *, axis: int = 1
) -> Tensor:
    """(x - zero_point) * scale in the dtype of the scale."""
    steps = x.to(torch.int32)
    if zero_point is not None:
        steps = steps - _along(zero_point, x, axis).to(torch.int32)
    return steps.to(scale.dtype) * _along(scale, x, axis)


ARITHMETIC: dict[str, Rule] = {
    "Abs": torch.abs,
    "Acos": torch.acos,
    "Add": torch.add,
    "And": torch.logical_and,
    "ArgMax": arg(torch.argmax),
    "ArgMin": arg(torch.argmin),
    "Asin": torch.asin,
    "Atan": torch.atan,
    "BitwiseAnd": torch.bitwise_and,
    "BitwiseNot": torch.bitwise_not,
    "BitwiseOr": torch.bitwise_or,
    "BitwiseXor": torch.bitwise_xor,
    "Cast": lambda x, *, to: x.to(DTYPES[to]),
    "CastLike": lambda x, like: x.to(like.dtype),
    "Ceil": torch.ceil,
    "Celu": lambda x, *, alpha=1.0: F.celu(x, alpha),
    "Clip": clip,
    "Cos": torch.cos,
    "Cosh": torch.cosh,
    "CumSum": cumulative_sum,
    "DequantizeLinear": dequantize,
    "Div": divide,
    "Einsum": lambda *terms, equation: torch.einsum(equation, *terms),
    "Elu": lambda x, *, alpha=1.0: F.elu(x, alpha),
    "Equal": torch.eq,
    "Erf": torch.erf,
    "Exp": torch.exp,
    "Floor": torch.floor,
    "Gelu": lambda x, *, approximate="none": F.gelu(x, approximate=approximate),
    "Gemm": gemm,
    "Greater": torch.gt,
    "GreaterOrEqual": torch.ge,
    "HardSigmoid": hard_sigmoid,
    "HardSwish": F.hardswish,
    "Hardmax": hardmax,
    "IsInf": is_inf,
    "IsNaN": torch.isnan,
    "LeakyRelu": lambda x, *, alpha=0.01: F.leaky_relu(x, alpha),
    "Less": torch.lt,
    "LessOrEqual": torch.le,
    "Log": torch.log,
    "LogSoftmax": lambda x, *, axis=-1: F.log_softmax(x, axis),
    "MatMul": matmul,
    "Max": lambda *terms: reduce(torch.maximum, terms),
    "Mean": lambda *terms: reduce(torch.add, terms) / len(terms),
    "Min": lambda *terms: reduce(torch.minimum, terms),
    "Mish": F.mish,
    "Mod": modulo,
    "Mul": torch.mul,
    "Neg": torch.neg,
    "Not": torch.logical_not,
    "Or": torch.logical_or,
    "PRelu": prelu,
    "Pow": power,
    "QuantizeLinear": quantize,
    "Reciprocal": torch.reciprocal,
    "ReduceL1": reduction(lambda x, axes, keep: x.abs().sum(axes, keep)),
    "ReduceL2": reduction(lambda x, axes, keep: (x * x).sum(axes, keep).sqrt()),
    "ReduceLogSum": reduction(lambda x, axes, keep: x.sum(axes, keep).log()),
    "ReduceLogSumExp": reduction(lambda x, axes, keep: torch.logsumexp(x, axes, keep)),
    "ReduceMax": reduction(lambda x, axes, keep: torch.amax(x, axes, keep)),
    "ReduceMean": reduction(lambda x, axes, keep: x.mean(axes, keep)),
    "ReduceMin": reduction(lambda x, axes, keep: torch.amin(x, axes, keep)),
    "ReduceProd": reduction(_product),
    "ReduceSum": reduction(lambda x, axes, keep: x.sum(axes, keep, dtype=x.dtype)),
    "ReduceSumSquare": reduction(lambda x, axes, keep: (x * x).sum(axes, keep)),
    "Relu": F.relu,
    "Round": torch.round,
    "Selu": selu,
    "Shrink": shrink,
    "Sigmoid": torch.sigmoid,
    "Sign": torch.sign,
    "Sin": torch.sin,
    "Sinh": torch.sinh,
    "Softmax": lambda x, *, axis=-1: F.softmax(x, axis),
    "Softplus": F.softplus,
    "Softsign": F.softsign,
    "Sqrt": torch.sqrt,
    "Sub": torch.sub,
    "Sum": lambda *terms: reduce(torch.add, terms),
    "Swish": swish,
    "Tan": torch.tan,
    "Tanh": torch.tanh,
    "ThresholdedRelu": thresholded,
    "TopK": top_k,
    "Where": torch.where,
    "Xor": torch.logical_xor,
}

# opset below which a rule differs -> the older rule
ARITHMETIC_BEFORE: dict[tuple[str, int], Rule] = {
    ("Hardmax", 13): flattened(ARITHMETIC["Hardmax"]),
    ("LogSoftmax", 13): flattened(ARITHMETIC["LogSoftmax"]),
    ("Softmax", 13): flattened(ARITHMETIC["Softmax"]),
}
