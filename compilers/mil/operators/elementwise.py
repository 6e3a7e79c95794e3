"""Operators that compute each element by itself: arithmetic, comparison, activations."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from sdk.compilers.mil.operators.arguments import Operator


def _unary(function: Callable[[Tensor], Tensor]) -> Operator:
    return lambda x: function(x)


def _binary(function: Callable[[Tensor, Tensor], Tensor]) -> Operator:
    return lambda x, y: function(x, y)


def _logical(function: Callable[[Tensor, Tensor], Tensor]) -> Operator:
    return lambda x, y: function(x.bool(), y.bool())


def _per_channel(values: Tensor, x: Tensor) -> Tensor:
    """A vector over axis 1 of x."""
    return values.reshape(1, -1, *(1,) * (x.dim() - 2))


def cast(x: Tensor, dtype: str) -> Tensor:
    """Floats to whole numbers cut towards zero; the rounding to a float type is the caller's."""
    if dtype == "bool":
        return x != 0
    return x.float() if dtype in ("fp16", "fp32") else x.to(getattr(torch, dtype))


def select(cond: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """a where the condition holds, else b."""
    return torch.where(cond.bool(), a, b)


def gelu(x: Tensor, mode: str) -> Tensor:
    """x times the normal distribution, exact or by one of two approximations."""
    if mode == "SIGMOID_APPROXIMATION":
        return x * torch.sigmoid(1.702 * x)
    return F.gelu(x, approximate="tanh" if mode == "TANH_APPROXIMATION" else "none")


def elu(x: Tensor, alpha: Tensor) -> Tensor:
    """x above zero, alpha (exp(x) - 1) below."""
    return torch.where(x >= 0, x, alpha * torch.expm1(x))


def leaky_relu(x: Tensor, alpha: Tensor) -> Tensor:
    """x above zero, alpha x below."""
    return torch.where(x >= 0, x, alpha * x)


def prelu(x: Tensor, alpha: Tensor) -> Tensor:
    """Leaky relu with a slope for each channel."""
    return torch.where(x >= 0, x, _per_channel(alpha, x) * x)


def clamped_relu(x: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    """Leaky relu, at most beta."""
    return torch.minimum(leaky_relu(x, alpha), beta)


def softplus_parametric(x: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    """alpha log(1 + exp(beta x)) with alpha and beta for each channel."""
    return _per_channel(alpha, x) * F.softplus(_per_channel(beta, x) * x)


OPERATORS: dict[str, Operator] = {
    **{
        name: _unary(getattr(torch, name))
        for name in (
            "abs", "acos", "asin", "atan", "atanh", "ceil", "cos", "cosh", "erf", "exp", "exp2",
            "floor", "round", "sigmoid", "sign", "sin", "sinh", "sqrt", "square", "tan", "tanh",
        )
    },
    **{
        name: _binary(getattr(torch, name))
        for name in ("add", "maximum", "minimum", "mul", "pow", "sub")
    },
    **{
        name: _binary(getattr(torch, short))
        for name, short in (
            ("equal", "eq"), ("not_equal", "ne"), ("greater", "gt"), ("greater_equal", "ge"),
            ("less", "lt"), ("less_equal", "le"),
        )
    },
    "logical_and": _logical(torch.logical_and),
    "logical_or": _logical(torch.logical_or),
    "logical_xor": _logical(torch.logical_xor),
    "logical_not": lambda x: ~x.bool(),
    "real_div": _binary(torch.true_divide),
    "floor_div": _binary(torch.floor_divide),
    "mod": _binary(torch.remainder),
    "clip": lambda x, alpha, beta: torch.clamp(x, alpha, beta),
    "threshold": lambda x, alpha: torch.maximum(x, alpha),
    "inverse": lambda x, epsilon: 1 / (x + epsilon),
    "log": lambda x, epsilon: torch.log(x + epsilon),
    "rsqrt": lambda x, epsilon: torch.rsqrt(x + epsilon),
    "cast": cast,
    "select": select,
    "identity": lambda x: x,
    "relu": _unary(F.relu),
    "relu6": _unary(F.relu6),
    "silu": _unary(F.silu),
    "softplus": _unary(F.softplus),
    "softsign": _unary(F.softsign),
    "gelu": gelu,
    "elu": elu,
    "leaky_relu": leaky_relu,
    "prelu": prelu,
    "clamped_relu": clamped_relu,
    "linear_activation": lambda x, alpha, beta: alpha * x + beta,
    "scaled_tanh": lambda x, alpha, beta: alpha * torch.tanh(beta * x),
    "sigmoid_hard": lambda x, alpha, beta: torch.clamp(alpha * x + beta, 0, 1),
    "softplus_parametric": softplus_parametric,
    "thresholded_relu": lambda x, alpha: torch.where(x >= alpha, x, torch.zeros_like(x)),
    "softmax": lambda x, axis: torch.softmax(x, int(axis)),
}  # fmt: skip
