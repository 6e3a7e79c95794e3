"""Static quantization: activations on a grid of 8 or 16 bits, weights s8 per output channel.

Quantize/dequantize pairs are put into the program once (torchao's PT2E: batch norms folded,
observers calibrated on the caller's data, weights stored as int8), so that every engine gets the
same numbers. Which edges get a pair is in `annotate.py`, and for NPUs in `annotate_all.py`.
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

from sdk.compilers.annotate import (
    ACTIVATION,
    ARITHMETIC,
    SYMMETRIC,
    WEIGHTED,
    IntegerKernels,
    fused_clip,
    layer_of,
)
from sdk.compilers.annotate_all import EveryOperator, spread
from sdk.compilers.program import Feed, Program
from sdk.compilers.reexport import reexport
from sdk.errors import InputError, QuantizationError
from sdk.extras import quiet
from sdk.signature import Array, Signature

with quiet("torchao"):
    from torchao.quantization.pt2e import HistogramObserver, MinMaxObserver
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer import QuantizationSpec

QUANTIZE = ("quantized_decomposed.quantize_per_tensor", "torchao.quantize_affine_float8")
DEQUANTIZE = ("quantized_decomposed.dequantize_per_tensor", "torchao.dequantize_affine_float8")

Step = Callable[[str, int, int], None]


def quantize(
    program: Program,
    calibration: Iterable[Feed],
    *,
    precision: str = "int8",
    everywhere: bool = False,
    symmetric: bool = False,
    keep_float: Collection[str] = (),
    step: Step | None = None,
) -> Program:
    """The program with Q/DQ pairs, calibrated; layers named in `keep_float` stay as they are.

    `precision` is a key of `ACTIVATION`, or `fp8`. With `everywhere` all operators get pairs, as
    NPUs need them, and not only those for which CPUs have integer kernels. With `symmetric` int8
    activations are signed and have no zero point, as TensorRT needs them.
    """
    feeds = check_calibration(program.signature, calibration)
    kept = frozenset(keep_float)
    if precision == "fp8":
        prepared = _prepared_float8(program, kept)
    else:
        grid = SYMMETRIC if symmetric else ACTIVATION[precision]
        prepared = _prepared(program, kept, grid, everywhere)
    _calibrate(prepared, program.signature, feeds, step)
    _check_scales(prepared)
    converted = convert_pt2e(prepared)
    quantized = reexport(converted, program, feeds[0])
    return replace(quantized, precision=precision, float_layers=tuple(sorted(kept)), base=program)


def _prepared(
    program: Program, keep_float: frozenset[str], activation: QuantizationSpec, everywhere: bool
) -> GraphModule:
    """The program's graph with observers on the edges that get a pair."""
    if everywhere:
        graph = spread(program.exported)
        return prepare_pt2e(graph, EveryOperator(keep_float, activation))
    graph = program.exported.module(check_guards=False)
    return prepare_pt2e(graph, IntegerKernels(keep_float, activation))


def _prepared_float8(program: Program, keep_float: frozenset[str]) -> GraphModule:
    from sdk.compilers.float8 import ProductsOnly

    graph = program.exported.module(check_guards=False)
    return prepare_pt2e(graph, ProductsOnly(keep_float))


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
        if isinstance(observer, (HistogramObserver, MinMaxObserver)) and not bool(
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
            if value.is_floating_point() and value.dtype.itemsize > 1:
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
    names = ("quantized_decomposed.dequantize", "torchao.dequantize")
    return isinstance(argument, Node) and str(argument.target).startswith(names)


def _quantizes_around(node: Node) -> Iterator[Node]:
    for source in node.all_input_nodes:
        if str(source.target).startswith(DEQUANTIZE):
            yield source.all_input_nodes[0]
    for user in fused_clip(node).users:
        if str(user.target).startswith(QUANTIZE):
            yield user
