"""Which edges of a program get a Q/DQ pair, and on which grid.

Activations are asymmetric per tensor, weights s8 symmetric per output channel. For engines that
run the rest in float the pairs stand where integer kernels need them: on both sides of a
convolution, matrix product, addition and multiplication, with one shared scale across operators
that only move or pool values.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from sdk.compilers.program import source_of
from sdk.errors import InputError
from sdk.extras import quiet

with quiet("torchao"):
    from torchao.quantization.pt2e import (
        HistogramObserver,
        MinMaxObserver,
        PerChannelMinMaxObserver,
    )
    from torchao.quantization.pt2e.quantizer import (
        QuantizationAnnotation,
        QuantizationSpec,
        Quantizer,
        SharedQuantizationSpec,
    )

aten = torch.ops.aten
EPS = 2**-24  # smallest scale: a channel of zeros stays finite
# Of weights: larger, so that the bias of such a channel fits into 32 bits at the products' scale.
WEIGHT_EPS = 2**-20
# precision -> grid of its activations. Sixteen bits have steps to spare for outliers, so that their
# range is the plain one; the histogram's search is made for eight.
ACTIVATION = {
    precision: QuantizationSpec(
        dtype=dtype,
        quant_min=0,
        quant_max=torch.iinfo(dtype).max,
        qscheme=torch.per_tensor_affine,
        observer_or_fake_quant_ctr=observer.with_args(eps=EPS),
    )
    for precision, dtype, observer in (
        ("int8", torch.uint8, HistogramObserver),
        ("a16w8", torch.uint16, MinMaxObserver),
    )
}
# Signed, around 0: the only grid on which TensorRT multiplies int8.
SYMMETRIC = QuantizationSpec(
    dtype=torch.int8,
    quant_min=-128,
    quant_max=127,
    qscheme=torch.per_tensor_symmetric,
    observer_or_fake_quant_ctr=HistogramObserver.with_args(eps=EPS),
)
WEIGHT = {
    axis: QuantizationSpec(
        dtype=torch.int8,
        quant_min=-127,
        quant_max=127,
        qscheme=torch.per_channel_symmetric,
        ch_axis=axis,
        observer_or_fake_quant_ctr=PerChannelMinMaxObserver.with_args(eps=WEIGHT_EPS),
    )
    for axis in (0, 1)
}
# operator -> axis of the output channels in its weight
WEIGHTED = {
    aten.conv1d.default: 0,
    aten.conv2d.default: 0,
    aten.conv_transpose2d.input: 1,
    aten.linear.default: 0,
}
ARITHMETIC = {aten.add.Tensor, aten.mul.Tensor, aten.add_.Tensor, aten.mul_.Tensor}
# Fused into the operator before them by the engines: the pair goes behind them.
CLIPS = {
    aten.relu.default, aten.relu_.default, aten.relu6.default, aten.relu6_.default,
    aten.hardtanh.default, aten.hardtanh_.default, aten.clamp.default,
}  # fmt: skip
# One scale before and behind them: they only move values.
MOVES = {
    aten.max_pool2d.default, aten.flatten.using_ints, aten.reshape.default, aten.view.default,
    aten.permute.default, aten.transpose.int, aten.dropout.default,
}  # fmt: skip
SUMS = {aten.mean.dim, aten.sum.dim_IntList}
# A pair of their own behind them, where their input has one: what follows then shares it, instead
# of quantizing the same float value once for each reader and pooling it in float.
MAPS = {
    aten.adaptive_avg_pool2d.default, aten.avg_pool2d.default, aten.hardswish.default,
    aten.hardswish_.default, aten.hardsigmoid.default, aten.hardsigmoid_.default,
    aten.sigmoid.default, aten.silu.default, aten.silu_.default, aten.leaky_relu.default,
    aten.leaky_relu_.default,
}  # fmt: skip


class IntegerKernels(Quantizer):  # type: ignore[misc]  # torchao has no type information
    """Marks the edges around integer kernels; `layers` collects the names of quantized layers."""

    def __init__(self, keep_float: frozenset[str], activation: QuantizationSpec) -> None:
        super().__init__()
        self.keep_float, self.activation = keep_float, activation
        self.layers: list[str] = []

    def annotate(self, model: GraphModule) -> GraphModule:
        """Mark `model` in place."""
        for node in model.graph.nodes:
            if node.op == "call_function" and node.target in {*WEIGHTED, *ARITHMETIC}:
                self._annotate_compute(node)
            elif _follows(node) and _is_quantized(node.args[0]):
                self._annotate_follower(node)
        self._check_kept()
        return model

    def validate(self, model: GraphModule) -> None:
        """Nothing to check: every mark is made above."""

    def _annotate_compute(self, node: Node) -> None:
        layer = layer_of(node)
        inputs = {a: self.activation for a in node.args[:2] if is_float(a) and not _is_table(a)}
        if node.target in WEIGHTED:
            if not is_weight(node.args[1]):
                return
            inputs[node.args[1]] = WEIGHT[WEIGHTED[node.target]]
        elif len(inputs) < 2:
            return
        self.layers.append(layer)
        if layer in self.keep_float:
            return
        last = fused_clip(node)
        output = None if is_result(last) or _is_summed(last) else self.activation
        own = output if last is node else None
        mark(node, QuantizationAnnotation(input_qspec_map=inputs, output_qspec=own))
        if last is not node:
            mark(last, QuantizationAnnotation(output_qspec=output))

    def _annotate_follower(self, node: Node) -> None:
        """A node whose input has a pair gets one behind it too: the same scale, or its own."""
        source = node.args[0]
        spec = self.activation if node.target in MAPS else SharedQuantizationSpec((source, node))
        output = None if is_result(node) else spec
        mark(node, QuantizationAnnotation({source: self.activation}, output))

    def _check_kept(self) -> None:
        unknown = sorted(self.keep_float - set(self.layers))
        if unknown:
            raise InputError(
                f"keep_float names the unknown layer {unknown[0]!r}.",
                expected=f"one of {', '.join(dict.fromkeys(self.layers))}",
                got=unknown,
            )


def layer_of(node: Node) -> str:
    """A layer's name: its module path; an operator written in a forward adds its own name."""
    source = source_of(node)
    return source.module if node.target in WEIGHTED else f"{source.module}:{node.name}"


def mark(node: Node, annotation: QuantizationAnnotation) -> None:
    annotation._annotated = True
    node.meta["quantization_annotation"] = annotation


def _follows(node: Node) -> bool:
    """Whether a pair behind the node makes sense where there is one before it."""
    if node.target is aten.pad.default:
        mode = node.args[2] if len(node.args) > 2 else "constant"
        value = node.args[3] if len(node.args) > 3 else None
        return mode == "constant" and not value  # zero is on every grid
    return node.target in {*MOVES, *MAPS}


def _is_quantized(node: Any) -> bool:
    """Whether the node's output carries a pair already."""
    mark = node.meta.get("quantization_annotation") if isinstance(node, Node) else None
    return mark is not None and mark.output_qspec is not None


def is_float(argument: Any) -> bool:
    if not isinstance(argument, Node) or not isinstance(argument.meta.get("val"), Tensor):
        return False
    dtype: torch.dtype = argument.meta["val"].dtype
    return dtype == torch.float32


def is_weight(argument: Any) -> bool:
    return isinstance(argument, Node) and argument.op == "get_attr"


def fused_clip(node: Node) -> Node:
    """The clip that engines fuse into `node` (behind a batch norm, if any), or `node`."""
    last = node
    while len(last.users) == 1:
        (user,) = last.users
        if user.target is aten.batch_norm.default:
            last = user
        elif user.target in CLIPS:
            return user
        else:
            break
    return last


def _is_table(argument: Any) -> bool:
    """A constant of several values: one scale for all would round the small ones to zero."""
    return is_weight(argument) and argument.meta["val"].numel() > 1


def _is_summed(node: Node) -> bool:
    """Whether a mean or sum over part of a sequence reads it: engines run that in float.

    OpenVINO 2026.4 would take the integers, and get a wrong mean over the middle one of three axes.
    """
    if node.meta["val"].dim() != 3:
        return False
    return any(
        user.target in SUMS or (user.target is aten.slice.Tensor and _is_summed(user))
        for user in node.users
    )


def is_result(node: Node) -> bool:
    """Whether nothing but moves stands between the node and an output: that stays float."""
    return any(
        user.op == "output" or (user.target in MOVES and is_result(user)) for user in node.users
    )
