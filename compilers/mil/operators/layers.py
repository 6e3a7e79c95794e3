"""Layers: convolution, pooling, matrix products, normalisation, attention."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from sdk.compilers.mil.operators.arguments import Operator, ints

CONV: dict[int, Callable[..., Tensor]] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
CONV_TRANSPOSE: dict[int, Callable[..., Tensor]] = {
    1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d,
}  # fmt: skip
AVG_POOL: dict[int, Callable[..., Tensor]] = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}
MAX_POOL: dict[int, Callable[..., Tensor]] = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}

Pairs = list[tuple[int, int]]


def _same(size: int, kernel: int, stride: int, lower: bool) -> tuple[int, int]:
    """Padding so that the output has ceil(size / stride) elements; an odd one lies behind."""
    total = max((math.ceil(size / stride) - 1) * stride + kernel - size, 0)
    before = total - total // 2 if lower else total // 2
    return before, total - before


def _padding(
    x: Tensor, kernel: Sequence[int], strides: Sequence[int], pad_type: str, pad: Tensor | None
) -> Pairs:
    """(before, after) for each spatial axis."""
    if pad_type == "custom":
        assert pad is not None
        amounts = ints(pad)
        return list(zip(amounts[::2], amounts[1::2], strict=True))
    if pad_type == "valid":
        return [(0, 0)] * len(kernel)
    sizes = zip(x.shape[2:], kernel, strides, strict=True)
    return [_same(size, k, s, pad_type == "same_lower") for size, k, s in sizes]


def _padded(x: Tensor, pairs: Pairs, value: float = 0.0) -> Tensor:
    return F.pad(x, [amount for pair in reversed(pairs) for amount in pair], value=value)


def conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    strides: Tensor,
    pad_type: str,
    pad: Tensor | None,
    dilations: Tensor,
    groups: Tensor,
) -> Tensor:
    """Convolution over one to three spatial axes."""
    steps, spread = ints(strides), ints(dilations)
    kernel = [(k - 1) * d + 1 for k, d in zip(weight.shape[2:], spread, strict=True)]
    x = _padded(x, _padding(x, kernel, steps, pad_type, pad))
    return CONV[len(steps)](x, weight, bias, steps, 0, spread, int(groups))


def conv_transpose(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    pad: Tensor | None,
    output_shape: Tensor | None,
    pad_type: str,
    strides: Tensor,
    dilations: Tensor,
    groups: Tensor,
) -> Tensor:
    """The full transposed convolution, cut or filled up with zeros to the output's size."""
    steps, spread = ints(strides), ints(dilations)
    rank = len(steps)
    full = CONV_TRANSPOSE[rank](x, weight, None, steps, 0, 0, int(groups), spread)
    pairs = _crops(x, full, steps, pad_type, pad)
    if output_shape is not None:
        sizes = ints(output_shape)[-rank:]
        pairs = [
            (before, have - before - size)
            for (before, _), have, size in zip(pairs, full.shape[2:], sizes, strict=True)
        ]
    cut = _padded(full, [(-before, -after) for before, after in pairs])
    return cut if bias is None else cut + bias.reshape(1, -1, *(1,) * rank)


def _crops(
    x: Tensor, full: Tensor, strides: Sequence[int], pad_type: str, pad: Tensor | None
) -> Pairs:
    """What lies before and behind the output in the full one."""
    if pad_type != "same":
        return _padding(x, strides, strides, pad_type, pad)
    over = [h - n * s for h, n, s in zip(full.shape[2:], x.shape[2:], strides, strict=True)]
    return [(max(o, 0) // 2, o - max(o, 0) // 2) for o in over]


def _windows(
    x: Tensor, kernel: Sequence[int], strides: Sequence[int], pairs: Pairs, ceil: bool
) -> Pairs:
    """What is padded behind the declared padding, so that rounded-up windows fit."""
    if not ceil:
        return [(0, 0)] * len(kernel)
    extra = []
    for size, k, s, (before, after) in zip(x.shape[2:], kernel, strides, pairs, strict=True):
        whole = size + before + after
        count = math.ceil((whole - k) / s) + 1
        if (count - 1) * s >= size + before and before + after > 0:
            count -= 1
        extra.append((0, max((count - 1) * s + k - whole, 0)))
    return extra


def max_pool(
    x: Tensor, kernel_sizes: Tensor, strides: Tensor, pad_type: str, pad: Tensor, ceil_mode: Tensor
) -> Tensor:
    """The largest value of each window."""
    kernel, steps = ints(kernel_sizes), ints(strides)
    pairs = _padding(x, kernel, steps, pad_type, pad)
    extra = _windows(x, kernel, steps, pairs, bool(ceil_mode))
    x = _padded(_padded(x, pairs, -math.inf), extra, -math.inf)
    return MAX_POOL[len(kernel)](x, kernel, steps)


def avg_pool(
    x: Tensor,
    kernel_sizes: Tensor,
    strides: Tensor,
    pad_type: str,
    pad: Tensor,
    exclude_padding_from_average: Tensor,
    ceil_mode: Tensor,
) -> Tensor:
    """The mean of each window, over what counts: never beyond the declared padding."""
    kernel, steps = ints(kernel_sizes), ints(strides)
    pairs = _padding(x, kernel, steps, pad_type, pad)
    extra = _windows(x, kernel, steps, pairs, bool(ceil_mode))
    inside = 0.0 if bool(exclude_padding_from_average) else 1.0
    counts = _padded(_padded(torch.ones_like(x[:1, :1]), pairs, inside), extra)
    pool = AVG_POOL[len(kernel)]
    return pool(_padded(_padded(x, pairs), extra), kernel, steps) / pool(counts, kernel, steps)


def l2_pool(
    x: Tensor, kernel_sizes: Tensor, strides: Tensor, pad_type: str, pad: Tensor, ceil_mode: Tensor
) -> Tensor:
    """The Euclidean norm of each window."""
    kernel, steps = ints(kernel_sizes), ints(strides)
    pairs = _padding(x, kernel, steps, pad_type, pad)
    extra = _windows(x, kernel, steps, pairs, bool(ceil_mode))
    squares = _padded(_padded(x, pairs), extra).square()
    return (AVG_POOL[len(kernel)](squares, kernel, steps) * math.prod(kernel)).sqrt()


def matmul(x: Tensor, y: Tensor, transpose_x: Tensor, transpose_y: Tensor) -> Tensor:
    """Matrix product over the last two axes."""
    left = x.transpose(-1, -2) if bool(transpose_x) else x
    right = y.transpose(-1, -2) if bool(transpose_y) else y
    return torch.matmul(left, right)


def batch_norm(
    x: Tensor,
    mean: Tensor,
    variance: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    epsilon: Tensor,
) -> Tensor:
    """By stored statistics of each channel."""
    return F.batch_norm(x, mean, variance, gamma, beta, False, 0.0, float(epsilon))


def instance_norm(x: Tensor, gamma: Tensor | None, beta: Tensor | None, epsilon: Tensor) -> Tensor:
    """By the statistics of each channel of each sample."""
    return F.instance_norm(x, weight=gamma, bias=beta, eps=float(epsilon))


def layer_norm(
    x: Tensor, axes: Tensor | None, gamma: Tensor | None, beta: Tensor | None, epsilon: Tensor
) -> Tensor:
    """Over the axes, all of them where none are named; scale and offset have their shape."""
    named = sorted(range(x.dim()) if axes is None else (axis % x.dim() for axis in ints(axes)))
    mean = x.mean(named, keepdim=True)
    scale = torch.rsqrt((x - mean).square().mean(named, keepdim=True) + epsilon)
    shape = [size if axis in named else 1 for axis, size in enumerate(x.shape)]
    result = (x - mean) * scale
    result = result if gamma is None else result * gamma.reshape(shape)
    return result if beta is None else result + beta.reshape(shape)


def l2_norm(x: Tensor, epsilon: Tensor) -> Tensor:
    """By the Euclidean norm of the last three axes."""
    total = x.square().sum((-3, -2, -1), keepdim=True)
    return x / (total + epsilon).sqrt()


def local_response_norm(x: Tensor, size: Tensor, alpha: Tensor, beta: Tensor, k: Tensor) -> Tensor:
    """By the squares of neighbouring channels."""
    return F.local_response_norm(x, int(size), float(alpha), float(beta), float(k))


def scaled_dot_product_attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None
) -> Tensor:
    """softmax(Q K^T / sqrt(E) + mask) V."""
    return F.scaled_dot_product_attention(query, key, value, attn_mask)


OPERATORS: dict[str, Operator] = {
    "conv": conv,
    "conv_transpose": conv_transpose,
    "max_pool": max_pool,
    "avg_pool": avg_pool,
    "l2_pool": l2_pool,
    "linear": lambda x, weight, bias: F.linear(x, weight, bias),
    "matmul": matmul,
    "einsum": lambda values, equation: torch.einsum(equation, *values),
    "batch_norm": batch_norm,
    "instance_norm": instance_norm,
    "layer_norm": layer_norm,
    "l2_norm": l2_norm,
    "local_response_norm": local_response_norm,
    "scaled_dot_product_attention": scaled_dot_product_attention,
}
