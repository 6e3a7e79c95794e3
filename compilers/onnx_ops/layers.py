"""ONNX convolutions, pools and normalisations in plain torch.

Source: the formulas at https://onnx.ai/onnx/operators, opsets 7 to 24. Tensors are
N x C x spatial with one to three spatial axes. Symmetric pads go into the operator, as quantizers
and engines expect; others become a pad of their own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from sdk.compilers.onnx_ops.values import Rule, Size, product, sym_max

Pads = tuple[tuple[Size, Size], ...]  # (begin, end) of each spatial axis

CONV = {3: F.conv1d, 4: F.conv2d, 5: F.conv3d}
CONV_TRANSPOSE = {3: F.conv_transpose1d, 4: F.conv_transpose2d, 5: F.conv_transpose3d}
MAX_POOL = {3: F.max_pool1d, 4: F.max_pool2d, 5: F.max_pool3d}
AVG_POOL = {3: F.avg_pool1d, 4: F.avg_pool2d, 5: F.avg_pool3d}
GLOBAL_AVG_POOL = {3: F.adaptive_avg_pool1d, 4: F.adaptive_avg_pool2d, 5: F.adaptive_avg_pool3d}


@dataclass(frozen=True)
class Window:
    """What a convolution or pool slides over its spatial axes."""

    kernel: list[int]
    strides: list[int]
    dilations: list[int]
    pads: Pads

    @property
    def extent(self) -> list[int]:
        """Input entries that one window spans, by axis."""
        return [(k - 1) * d + 1 for k, d in zip(self.kernel, self.dilations, strict=True)]

    @property
    def symmetric(self) -> bool:
        """Whether torch's own padding argument can say these pads."""
        return all(begin == end and begin >= 0 for begin, end in self.pads)

    @property
    def poolable(self) -> bool:
        """As `symmetric`, and within torch's bound for pools."""
        return self.symmetric and all(
            2 * pad[0] <= k for pad, k in zip(self.pads, self.kernel, strict=True)
        )

    @property
    def padding(self) -> list[Size]:
        """The symmetric pads as torch takes them."""
        return [begin for begin, _ in self.pads]


def same_pads(size: Size, extent: int, stride: int, *, lower: bool) -> tuple[Size, Size]:
    """Pads with which ceil(size / stride) windows fit; the odd one at the end, or at the start."""
    outputs = (size + stride - 1) // stride
    total = sym_max((outputs - 1) * stride + extent - size, 0)
    small, large = total // 2, total - total // 2
    return (large, small) if lower else (small, large)


def explicit_pads(pads: list[int] | None, rank: int) -> Pads:
    """ONNX's list (all begins, then all ends) as pairs."""
    flat = pads or [0] * (2 * rank)
    return tuple(zip(flat[:rank], flat[rank:], strict=True))


def window_of(
    x: Tensor,
    kernel: list[int],
    strides: list[int] | None,
    dilations: list[int] | None,
    pads: list[int] | None,
    auto_pad: str,
) -> Window:
    """The window with its defaults filled in and its pads made explicit."""
    rank, sizes = len(kernel), list(x.shape[2:])
    window = Window(
        kernel, strides or [1] * rank, dilations or [1] * rank, explicit_pads(None, rank)
    )
    if auto_pad == "NOTSET":
        return replace(window, pads=explicit_pads(pads, rank))
    if auto_pad == "VALID":
        return window
    lower = auto_pad == "SAME_LOWER"
    axes = zip(sizes, window.extent, window.strides, strict=True)
    return replace(window, pads=tuple(same_pads(n, k, s, lower=lower) for n, k, s in axes))


def pad(x: Tensor, pads: Pads, value: float = 0.0) -> Tensor:
    """x with its last axes padded by a constant; negative pads crop."""
    flat = [amount for pair in reversed(pads) for amount in pair]
    return F.pad(x, flat, value=value) if any(amount != 0 for amount in flat) else x


def conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: list[int] | None = None,
    group: int = 1,
    pads: list[int] | None = None,
    strides: list[int] | None = None,
) -> Tensor:
    """N x C x spatial with weight M x C/group x kernel -> N x M x spatial."""
    window = window_of(x, list(weight.shape[2:]), strides, dilations, pads, auto_pad)
    padding: list[Size] = window.padding
    if not window.symmetric:
        x, padding = pad(x, window.pads), [0] * len(padding)
    return CONV[x.dim()](x, weight, bias, window.strides, padding, window.dilations, group)


def _deconv_pads(
    window: Window, extra: list[int], sizes: list[Size], shape: list[int] | None, auto_pad: str
) -> Pads:
    """What ConvTranspose cuts off: given, or such that the output has the asked shape."""
    if shape is None and not auto_pad.startswith("SAME"):
        return window.pads
    asked = shape or [n * s for n, s in zip(sizes, window.strides, strict=True)]
    axes = zip(sizes, window.strides, extra, window.extent, asked, strict=True)
    totals = [(n - 1) * s + more + k - out for n, s, more, k, out in axes]
    pairs = tuple((total // 2, total - total // 2) for total in totals)
    return pairs if auto_pad == "SAME_UPPER" else tuple((end, begin) for begin, end in pairs)


def conv_transpose(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: list[int] | None = None,
    group: int = 1,
    output_padding: list[int] | None = None,
    output_shape: list[int] | None = None,
    pads: list[int] | None = None,
    strides: list[int] | None = None,
) -> Tensor:
    """N x C x spatial with weight C x M/group x kernel -> N x M x spatial."""
    rank = x.dim() - 2
    window = window_of(x, list(weight.shape[2:]), strides, dilations, pads, "NOTSET")
    extra, shape = output_padding or [0] * rank, output_shape and output_shape[-rank:]
    cut = _deconv_pads(window, extra, list(x.shape[2:]), shape or None, auto_pad)
    window = replace(window, pads=cut)
    padding: list[Size] = window.padding if window.symmetric else [0] * rank
    full = CONV_TRANSPOSE[x.dim()](
        x, weight, bias, window.strides, padding, extra, group, window.dilations
    )
    return full if window.symmetric else pad(full, tuple((-begin, -end) for begin, end in cut))


def _overhang(size: Size, pads: tuple[Size, Size], extent: int, stride: int) -> Size:
    """End pad with which floor-mode pooling gives the number of windows of ceil mode.

    A window that would start behind the input and its begin pad is dropped.
    """
    begin, end = pads
    outputs = (size + begin + end - extent + stride - 1) // stride + 1
    if (outputs - 1) * stride >= size + begin:
        outputs = outputs - 1
    return (outputs - 1) * stride + extent - size - begin


def _ceiled(x: Tensor, window: Window) -> Window:
    """The same windows with the pads of ceil mode made explicit."""
    axes = zip(x.shape[2:], window.pads, window.extent, window.strides, strict=True)
    return replace(window, pads=tuple((p[0], _overhang(n, p, k, s)) for n, p, k, s in axes))


def max_pool(
    x: Tensor,
    *,
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    dilations: list[int] | None = None,
    kernel_shape: list[int],
    pads: list[int] | None = None,
    strides: list[int] | None = None,
) -> Tensor:
    """Maximum of each window; padding never wins."""
    window = window_of(x, kernel_shape, strides, dilations, pads, auto_pad)
    ceil, padding = bool(ceil_mode), window.padding
    if not window.poolable:
        window = _ceiled(x, window) if ceil else window
        x, padding, ceil = pad(x, window.pads, -math.inf), [0] * len(padding), False
    return MAX_POOL[x.dim()](x, window.kernel, window.strides, padding, window.dilations, ceil)


def _means(x: Tensor, window: Window) -> Tensor:
    """Mean of each window of an x that is padded already; by convolution where it is dilated."""
    if set(window.dilations) == {1}:
        return AVG_POOL[x.dim()](x, window.kernel, window.strides)
    ones = x.new_full((1, 1, *window.kernel), 1.0 / math.prod(window.kernel))
    rows = x.reshape(-1, 1, *x.shape[2:])
    means = CONV[x.dim()](rows, ones, None, window.strides, 0, window.dilations)
    return means.reshape(*x.shape[:2], *means.shape[2:])


def average_pool(
    x: Tensor,
    *,
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    count_include_pad: int = 0,
    dilations: list[int] | None = None,
    kernel_shape: list[int],
    pads: list[int] | None = None,
    strides: list[int] | None = None,
) -> Tensor:
    """Mean of each window, over the input alone or over the input and its pads."""
    window = window_of(x, kernel_shape, strides, dilations, pads, auto_pad)
    if window.poolable and set(window.dilations) == {1}:
        include = bool(count_include_pad)
        return AVG_POOL[x.dim()](
            x, window.kernel, window.strides, window.padding, bool(ceil_mode), include
        )
    full = _ceiled(x, window) if ceil_mode else window
    counted = torch.ones_like(x[:1, :1])
    rest = full.pads
    if count_include_pad:
        counted = pad(counted, window.pads, 1.0)
        rest = tuple((0, f[1] - w[1]) for f, w in zip(full.pads, window.pads, strict=True))
    return _means(pad(x, full.pads), full) / _means(pad(counted, rest), full)


def global_average_pool(x: Tensor) -> Tensor:
    """Mean over all spatial axes, kept with size 1."""
    return GLOBAL_AVG_POOL[x.dim()](x, 1)


def global_max_pool(x: Tensor) -> Tensor:
    """Maximum over all spatial axes, kept with size 1."""
    return torch.amax(x, list(range(2, x.dim())), keepdim=True)


def batch_norm(
    x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, var: Tensor, *, epsilon: float = 1e-5
) -> Tensor:
    """(x - mean) / sqrt(var + epsilon) * scale + bias, with the stored statistics."""
    return F.batch_norm(x, mean, var, scale, bias, training=False, eps=epsilon)


def instance_norm(x: Tensor, scale: Tensor, bias: Tensor, *, epsilon: float = 1e-5) -> Tensor:
    """Normalised over the spatial axes of each channel of each sample."""
    return F.instance_norm(x, weight=scale, bias=bias, eps=epsilon)


def layer_norm(
    x: Tensor, scale: Tensor, bias: Tensor | None = None, *, axis: int = -1, epsilon: float = 1e-5
) -> Tensor:
    """Normalised over all axes from `axis` on."""
    shape = list(x.shape[axis:])
    if list(scale.shape) == shape and (bias is None or list(bias.shape) == shape):
        return F.layer_norm(x, shape, scale, bias, epsilon)
    scaled = F.layer_norm(x, shape, eps=epsilon) * scale
    return scaled if bias is None else scaled + bias


def rms_norm(x: Tensor, scale: Tensor, *, axis: int = -1, epsilon: float = 1e-5) -> Tensor:
    """x / sqrt(mean(x^2) + epsilon) * scale over all axes from `axis` on."""
    axes = list(range(axis if axis < 0 else axis - x.dim(), 0))
    return x * torch.rsqrt((x * x).mean(axes, keepdim=True) + epsilon) * scale


def group_norm(
    x: Tensor, scale: Tensor, bias: Tensor, *, epsilon: float = 1e-5, num_groups: int
) -> Tensor:
    """Normalised over each group of channels; scale and bias are per channel (opset 21)."""
    return F.group_norm(x, num_groups, scale, bias, epsilon)


def group_norm_18(
    x: Tensor, scale: Tensor, bias: Tensor, *, epsilon: float = 1e-5, num_groups: int
) -> Tensor:
    """As `group_norm`, with one scale and bias per group (opset 18)."""
    repeat = x.shape[1] // num_groups
    wide = (scale.repeat_interleave(repeat), bias.repeat_interleave(repeat))
    return F.group_norm(x, num_groups, *wide, epsilon)


def local_response_norm(
    x: Tensor, *, alpha: float = 1e-4, beta: float = 0.75, bias: float = 1.0, size: int
) -> Tensor:
    """x / (bias + alpha / size * sum of squares over `size` neighbouring channels) ** beta."""
    before, after = (size - 1) // 2, size // 2
    around: Pads = ((before, after), *(((0, 0),) * (x.dim() - 2)))
    squares: Tensor = pad(x * x, around).unfold(1, size, 1).sum(-1)
    return x / torch.pow(bias + alpha / size * squares, beta)


def lp_normalization(x: Tensor, *, axis: int = -1, p: int = 2) -> Tensor:
    """x / its p-norm along one axis."""
    norm: Tensor = torch.linalg.vector_norm(x, p, axis, keepdim=True)
    return x / norm


def flatten(x: Tensor, *, axis: int = 1) -> Tensor:
    """2-D: the axes before `axis` as rows, the others as columns."""
    if axis == 1 and x.dim() > 1:
        return torch.flatten(x, 1)
    return x.reshape(product(x.shape[:axis]), product(x.shape[axis:]))


LAYERS: dict[str, Rule] = {
    "AveragePool": average_pool,
    "BatchNormalization": batch_norm,
    "Conv": conv,
    "ConvTranspose": conv_transpose,
    "Flatten": flatten,
    "GlobalAveragePool": global_average_pool,
    "GlobalMaxPool": global_max_pool,
    "GroupNormalization": group_norm,
    "InstanceNormalization": instance_norm,
    "LRN": local_response_norm,
    "LayerNormalization": layer_norm,
    "LpNormalization": lp_normalization,
    "MaxPool": max_pool,
    "RMSNormalization": rms_norm,
}

LAYERS_BEFORE: dict[tuple[str, int], Rule] = {("GroupNormalization", 21): group_norm_18}
