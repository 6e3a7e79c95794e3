"""Static quantization: activations on a grid of 8 or 16 bits, weights s8 per output channel.

Quantize/dequantize pairs are put into the program once (torchao's PT2E: batch norms folded,
observers calibrated on the caller's data, weights stored as int8), so that every engine gets the
same numbers. Which edges get a pair is in `annotate.py`, and for NPUs in `annotate_all.py`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from torch.fx import GraphModule, Interpreter, Node

from sdk.compilers.annotate import ACTIVATION, SYMMETRIC, IntegerKernels
from sdk.compilers.annotate_all import EveryOperator, spread
from sdk.compilers.calibrate import Step as Step, calibrate, leave_masks
from sdk.compilers.integer_biases import round_biases
from sdk.compilers.paddings import number_paddings
from sdk.compilers.program import Feed, Program
from sdk.compilers.reexport import reexport
from sdk.errors import InputError, QuantizationError
from sdk.extras import quiet
from sdk.signature import Array, Signature

with quiet("torchao"):
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer import QuantizationSpec

QUANTIZE = ("quantized_decomposed.quantize_per_tensor", "torchao.quantize_affine_float8")
DEQUANTIZE = ("quantized_decomposed.dequantize_per_tensor", "torchao.dequantize_affine_float8")


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
    graph = observed(
        program,
        feeds,
        precision=precision,
        everywhere=everywhere,
        symmetric=symmetric,
        keep_float=kept,
        step=step,
    )
    converted = convert_pt2e(graph)
    round_biases(converted)
    quantized = reexport(converted, program, feeds[0])
    return replace(quantized, precision=precision, float_layers=tuple(sorted(kept)), base=program)


def observed(
    program: Program,
    feeds: Sequence[Feed],
    *,
    precision: str,
    everywhere: bool = False,
    symmetric: bool = False,
    keep_float: frozenset[str] = frozenset(),
    step: Step | None = None,
) -> GraphModule:
    """The program's graph with calibrated observers on the edges that get a pair.

    The options are those of `quantize`.
    """
    if precision == "fp8":
        graph = _prepared_float8(program, keep_float)
    else:
        grid = SYMMETRIC if symmetric else ACTIVATION[precision]
        graph = _prepared(program, keep_float, grid, everywhere)
    calibrate(graph, program, feeds, f"{precision} {everywhere} {symmetric}", step)
    if not everywhere:  # where everything is quantized there is no float to leave them in
        leave_masks(graph)
    return graph


def _prepared(
    program: Program, keep_float: frozenset[str], activation: QuantizationSpec, everywhere: bool
) -> GraphModule:
    prepared: GraphModule
    if everywhere:
        prepared = prepare_pt2e(spread(program.exported), EveryOperator(keep_float, activation))
    else:
        graph = number_paddings(program.exported.module(check_guards=False))
        prepared = prepare_pt2e(graph, IntegerKernels(keep_float, activation))
    return prepared


def _prepared_float8(program: Program, keep_float: frozenset[str]) -> GraphModule:
    from sdk.compilers.float8 import ProductsOnly

    graph = program.exported.module(check_guards=False)
    prepared: GraphModule = prepare_pt2e(graph, ProductsOnly(keep_float))
    return prepared


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
