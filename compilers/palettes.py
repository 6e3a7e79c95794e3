"""Palettes: linear and embedding weights as indices into 64 or 16 values, for Core ML.

The values are those of one-dimensional k-means over the whole weight, by coremltools; the program
reads them with `take`, so that PyTorch computes what every engine will.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from sdk.compilers.mil.frontend import coremltools, hushed
from sdk.compilers.program import Program
from sdk.compilers.quantize import Step
from sdk.compilers.reexport import reexport
from sdk.compilers.weight_only import _chosen
from sdk.compilers.weight_only_graph import Weight, find_weights, turn
from sdk.errors import QuantizationError

aten = torch.ops.aten
BITS = {"pal6": 6, "pal4": 4}
METHODS = ("rtn", "kmeans")  # the first is every precision's default: no data is looked at


def palettize(
    program: Program,
    precision: str,
    *,
    group_size: int | None = None,
    method: str = "kmeans",
    keep_float: Collection[str] = (),
    step: Step | None = None,
) -> Program:
    """`program` with the weights of linear and embedding layers in palettes (`pal6` or `pal4`).

    Raises QuantizationError for a group size, which palettes have not, another method, or weights
    that are not finite; InputError for unknown layers in `keep_float`.
    """
    if group_size is not None or method not in METHODS:
        raise QuantizationError(
            "A palette is made by k-means for a whole weight.",
            expected=f"method {METHODS[-1]!r} and no group size",
            got=f"method {method!r}, group size {group_size}",
            fix="leave both out",
        )
    graph = program.exported.module(check_guards=False)
    weights = _chosen(find_weights(graph), keep_float)
    for index, weight in enumerate(weights):
        _store(graph, weight, *_palette(weight, BITS[precision]))
        if step is not None:
            step("compress weights", index + 1, len(weights))
    made = reexport(graph, program, program.signature.zeros())
    kept = tuple(sorted({layer for w in find_weights(graph) for layer in w.layers}))
    settings = {"method": METHODS[-1], "group_size": "tensor"}
    return replace(made, precision=precision, float_layers=kept, settings=settings, base=program)


def _palette(weight: Weight, bits: int) -> tuple[Tensor, Tensor]:
    """The values, 2**bits of them in fp16's steps, and an index (uint8) for each weight."""
    matrix = weight.matrix.numpy()
    if not np.isfinite(matrix).all():
        raise QuantizationError(f"A weight of {weight.layers[0]!r} is NaN or infinite.")
    passes = coremltools("coremltools.optimize.coreml._quantization_passes")
    with hushed():
        found = passes.palettize_weights.blockwise_compress(matrix, "KMEANS", bits, [0, 0])
    values = np.zeros(1 << bits, np.float32)
    values[: found.lut.size] = found.lut.reshape(-1)
    stored = torch.from_numpy(values).half().float()
    return stored, torch.from_numpy(found.indices.astype(np.uint8).reshape(matrix.shape))


def _store(graph: GraphModule, weight: Weight, values: Tensor, indices: Tensor) -> None:
    """Replace `weight` by a look-up for all layers that read it."""
    first = weight.uses[0]
    with graph.graph.inserting_before(first.weight):
        value = _looked_up(graph, weight.name, values, indices, first.reader)
        value = turn(graph, value, first.reader) if weight.turned else value
    for use in weight.uses:
        use.reader.replace_input_with(use.weight, value)
    graph.graph.eliminate_dead_code()
    graph.recompile()


def _looked_up(
    graph: GraphModule, name: str, values: Tensor, indices: Tensor, reader: Node
) -> Node:
    path, _, leaf = name.rpartition(".")
    owner = graph.get_submodule(path)
    parts = []
    for suffix, tensor in (("palette", values), ("indices", indices)):
        owner.register_buffer(f"{leaf}_{suffix}", tensor)
        parts.append(graph.graph.get_attr(f"{name}_{suffix}"))
    wide = graph.graph.call_function(aten.to.dtype, (parts[1], torch.int64))
    value = graph.graph.call_function(aten.take.default, (parts[0], wide))
    for node in (wide, value):
        origin = ("nn_module_stack", "stack_trace", "source_fn_stack")
        node.meta.update({key: reader.meta[key] for key in origin if key in reader.meta})
    return value
