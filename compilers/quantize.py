"""Static int8: activations u8 asymmetric per tensor, weights s8 symmetric per output channel.

Quantize/dequantize pairs are put into the program once (torchao's PT2E: batch norms folded,
observers calibrated on the caller's data, weights stored as int8), so that every engine gets the
same numbers. Which edges get a pair follows what integer kernels of ONNX Runtime and OpenVINO
need: both sides of a convolution, matrix product, addition and multiplication, and one shared scale
across operators that only move or pool values.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node

from sdk.compilers.capture import reexport
from sdk.compilers.program import Feed, Program, source_of
from sdk.errors import InputError, QuantizationError
from sdk.extras import quiet
from sdk.signature import Array, Signature

with quiet("torchao"):
    from torchao.quantization.pt2e import HistogramObserver, PerChannelMinMaxObserver
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
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
ACTIVATION = QuantizationSpec(
    dtype=torch.uint8,
    quant_min=0,
    quant_max=255,
    qscheme=torch.per_tensor_affine,
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
# A pair of their own behind them, where their input has one: what follows then shares it, instead
# of quantizing the same float value once for each reader and pooling it in float.
MAPS = {
    aten.adaptive_avg_pool2d.default, aten.avg_pool2d.default, aten.hardswish.default,
    aten.hardswish_.default, aten.hardsigmoid.default, aten.hardsigmoid_.default,
    aten.sigmoid.default, aten.silu.default, aten.silu_.default, aten.leaky_relu.default,
    aten.leaky_relu_.default,
}  # fmt: skip
QUANTIZE = "quantized_decomposed.quantize_per_tensor"
DEQUANTIZE = "quantized_decomposed.dequantize_per_tensor"

Step = Callable[[str, int, int], None]


def quantize(
    program: Program,
    calibration: Iterable[Feed],
    *,
    keep_float: Collection[str] = (),
    step: Step | None = None,
) -> Program:
    """The program with Q/DQ pairs, calibrated; layers named in `keep_float` stay as they are."""
    feeds = check_calibration(program.signature, calibration)
    graph = program.exported.module(check_guards=False)
    quantizer = Int8Quantizer(frozenset(keep_float))
    prepared = prepare_pt2e(graph, quantizer)
    _calibrate(prepared, program.signature, feeds, step)
    _check_scales(prepared)
    converted = convert_pt2e(prepared)
    quantized = reexport(converted, program, feeds[0])
    kept = tuple(sorted(keep_float))
    return replace(quantized, precision="int8", float_layers=kept, base=program)


class Int8Quantizer(Quantizer):  # type: ignore[misc]  # torchao has no type information
    """Marks the edges that get a Q/DQ pair; `layers` collects the names of quantized layers."""

    def __init__(self, keep_float: frozenset[str]) -> None:
        super().__init__()
        self.keep_float = keep_float
        self.layers: list[str] = []

    def annotate(self, model: GraphModule) -> GraphModule:
        """Mark `model` in place."""
        for node in model.graph.nodes:
            if node.op == "call_function" and node.target in {*WEIGHTED, *ARITHMETIC}:
                self._annotate_compute(node)
            elif _follows(node) and _is_quantized(node.args[0]):
                _annotate_follower(node)
        self._check_kept()
        return model

    def validate(self, model: GraphModule) -> None:
        """Nothing to check: every mark is made above."""

    def _annotate_compute(self, node: Node) -> None:
        layer = layer_of(node)
        inputs = {a: ACTIVATION for a in node.args[:2] if _is_float(a) and not _is_table(a)}
        if node.target in WEIGHTED:
            if not _is_weight(node.args[1]):
                return
            inputs[node.args[1]] = WEIGHT[WEIGHTED[node.target]]
        elif len(inputs) < 2:
            return
        self.layers.append(layer)
        if layer in self.keep_float:
            return
        last = _fused_clip(node)
        output = None if _is_result(last) else ACTIVATION
        own = output if last is node else None
        _mark(node, QuantizationAnnotation(input_qspec_map=inputs, output_qspec=own))
        if last is not node:
            _mark(last, QuantizationAnnotation(output_qspec=output))

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


def _mark(node: Node, annotation: QuantizationAnnotation) -> None:
    annotation._annotated = True
    node.meta["quantization_annotation"] = annotation


def _follows(node: Node) -> bool:
    """Whether a pair behind the node makes sense where there is one before it."""
    if node.target is aten.pad.default:
        mode = node.args[2] if len(node.args) > 2 else "constant"
        value = node.args[3] if len(node.args) > 3 else None
        return mode == "constant" and not value  # zero is on every grid
    return node.target in {*MOVES, *MAPS}


def _annotate_follower(node: Node) -> None:
    """A node whose input has a pair gets one behind it too: the same scale, or its own."""
    source = node.args[0]
    spec = ACTIVATION if node.target in MAPS else SharedQuantizationSpec((source, node))
    output = None if _is_result(node) else spec
    _mark(node, QuantizationAnnotation({source: ACTIVATION}, output))


def _is_quantized(node: Any) -> bool:
    """Whether the node's output carries a pair already."""
    mark = node.meta.get("quantization_annotation") if isinstance(node, Node) else None
    return mark is not None and mark.output_qspec is not None


def _is_float(argument: Any) -> bool:
    if not isinstance(argument, Node) or not isinstance(argument.meta.get("val"), Tensor):
        return False
    dtype: torch.dtype = argument.meta["val"].dtype
    return dtype == torch.float32


def _is_weight(argument: Any) -> bool:
    return isinstance(argument, Node) and argument.op == "get_attr"


def _fused_clip(node: Node) -> Node:
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
    return _is_weight(argument) and argument.meta["val"].numel() > 1


def _is_result(node: Node) -> bool:
    """Whether nothing but moves stands between the node and an output: that stays float."""
    return any(
        user.op == "output" or (user.target in MOVES and _is_result(user)) for user in node.users
    )


def check_calibration(signature: Signature, calibration: Iterable[Feed]) -> list[dict[str, Array]]:
    """The calibration feeds as a list; QuantizationError unless they fit the signature."""
    feeds = [dict(feed) for feed in calibration]
    if not feeds:
        raise QuantizationError(
            "The calibration data is empty.",
            expected="at least one batch of real inputs",
            fix="pass calibration=[batch, ...]",
        )
    for index, feed in enumerate(feeds):
        _check_feed(signature, feed, f"Calibration batch {index}")
    return feeds


def _check_feed(signature: Signature, feed: Feed, what: str) -> None:
    try:
        signature.check(feed)
    except InputError as error:
        raise QuantizationError(
            f"{what}: {error.what}",
            expected=error.expected,
            got=error.got,
            fix="calibrate with inputs of the model's own shape and dtype",
        ) from error
    bad = [name for name, x in feed.items() if x.dtype.kind == "f" and not np.isfinite(x).all()]
    if bad:
        raise QuantizationError(f"{what} has NaN or infinity in {bad[0]!r}.")


def _calibrate(
    prepared: GraphModule, signature: Signature, feeds: list[dict[str, Array]], step: Step | None
) -> None:
    names = [spec.name for spec in signature.inputs]
    with torch.no_grad():
        for index, feed in enumerate(feeds):
            prepared(*(torch.from_numpy(feed[name]) for name in names))
            if step is not None:
                step("calibrate", index + 1, len(feeds))


def _check_scales(prepared: GraphModule) -> None:
    for name, observer in prepared.named_modules():
        if isinstance(observer, HistogramObserver) and not bool(
            observer.min_val <= observer.max_val
        ):
            raise QuantizationError(
                f"The observer {name} saw no values: its part of the model did not run."
            )


class SwitchableQdq(Interpreter):
    """Runs a Q/DQ graph with only the pairs of `active` quantizing; others pass values through."""

    def __init__(self, graph: GraphModule, active: Collection[str] | None) -> None:
        super().__init__(graph)
        self.active = active

    def run_node(self, n: Node) -> Any:
        """Run one node, or pass its input through."""
        if self.active is None or n.op != "call_function":
            return super().run_node(n)
        if str(n.target).startswith(QUANTIZE) and n.name not in self.active:
            return self.env[n.all_input_nodes[0]]
        if str(n.target).startswith(DEQUANTIZE):
            value = self.env[n.all_input_nodes[0]]
            if value.is_floating_point():
                return value
        return super().run_node(n)


def rank_layers(quantized: Program, feed: Feed) -> list[tuple[str, float]]:
    """Layers by what quantizing their activations alone costs, worst first.

    The cost is the relative RMS change of the first output when only the pairs around that layer
    quantize. Weights are quantized in both runs. This ranking is our heuristic; the metric decides.
    """
    graph = quantized.exported.module(check_guards=False)
    tensors = [torch.from_numpy(feed[spec.name]) for spec in quantized.signature.inputs]
    plain = _first_output(graph, tensors, ())
    scale = float(plain.std()) or 1.0
    costs = {
        layer: float((_first_output(graph, tensors, pairs) - plain).square().mean().sqrt()) / scale
        for layer, pairs in _pairs_by_layer(graph).items()
    }
    return sorted(costs.items(), key=lambda item: -item[1])


def _first_output(graph: GraphModule, tensors: list[Tensor], active: Collection[str]) -> Tensor:
    with torch.no_grad():
        result = SwitchableQdq(graph, active).run(*tensors)
    first = torch.utils._pytree.tree_leaves(result)[0]
    assert isinstance(first, Tensor)
    return first


def _pairs_by_layer(graph: GraphModule) -> dict[str, set[str]]:
    """Layer -> names of the quantize nodes right before and behind it."""
    pairs: dict[str, set[str]] = defaultdict(set)
    for node in graph.graph.nodes:
        if node.target in {*WEIGHTED, *ARITHMETIC} and all(map(_is_dequantized, node.args[:2])):
            pairs[layer_of(node)].update(q.name for q in _quantizes_around(node))
    return dict(pairs)


def _is_dequantized(argument: Any) -> bool:
    return isinstance(argument, Node) and "quantized_decomposed.dequantize" in str(argument.target)


def _quantizes_around(node: Node) -> Iterator[Node]:
    for source in node.all_input_nodes:
        if str(source.target).startswith(DEQUANTIZE):
            yield source.all_input_nodes[0]
    for user in _fused_clip(node).users:
        if str(user.target).startswith(QUANTIZE):
            yield user
