"""Weight-only precisions: linear and embedding weights as 8, 4 or 2 bits, arithmetic in float.

The numbers are decided once, here: each weight becomes integers [N, K] and scales [N, K / group],
which one dequantizing operator multiplies. There are no zero points: the scale of a group of 2- or
4-bit numbers has the sign that puts the group's largest value at the end of the grid that has one
step more. On Gaussian weights in groups of 32 that loses less at 2 bits than a zero point (relative
RMS 0.36 and 0.41) and little more at 4 (0.086 and 0.081), in 2.5 and 4.5 bits a weight.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import replace

import torch
from torch import Tensor
from torch.fx import GraphModule

from sdk.compilers.program import Feed, Program
from sdk.compilers.quantize import Step, check_calibration
from sdk.compilers.reexport import reexport
from sdk.compilers.weight_only_graph import Groups, Weight, find_weights, store
from sdk.errors import InputError, QuantizationError
from sdk.extras import quiet

with quiet("torchao"):
    from torchao.quantization import IntxUnpackedToInt8Tensor
    from torchao.quantization.quant_primitives import MappingType
    from torchao.quantization.quantize_.workflows.intx.intx_choose_qparams_algorithm import (
        IntxChooseQParamsAlgorithm,
    )

BITS = {"w8": 8, "int4": 4, "int2": 2}
# torch has these types, its stubs do not
DTYPE = {name: getattr(torch, f"int{bits}") for name, bits in BITS.items()}
GROUP = 32
GROUPS = (16, 32, 64, 128, 256)  # ONNX Runtime's kernels have powers of two from 16
DATA_FREE = ("rtn", "hqq")
DATA_AWARE = ("awq", "gptq", "scale_estimation")  # NNCF's; it has them for four bits
METHODS = {
    "w8": DATA_FREE,
    "int4": (*DATA_FREE, *DATA_AWARE),
    "int2": DATA_FREE,
}
HALF = (2.0**-14, 65504.0)  # scales in this range keep all bits that fp16 has


def compress(
    program: Program,
    precision: str,
    *,
    group_size: int | None = None,
    method: str = "rtn",
    calibration: Iterable[Feed] = (),
    keep_float: Collection[str] = (),
    step: Step | None = None,
) -> Program:
    """`program` with the weights of linear and embedding layers stored at `precision`.

    precision: `w8` (one scale per output channel), `int4` or `int2` (one per `group_size` weights).
    group_size: 16, 32, 64, 128 or 256; default 32.
    method: `rtn` rounds to nearest; `hqq` refines the scales; `awq`, `gptq` and `scale_estimation`
        look at `calibration`.
    keep_float: layers that stay as they are.

    Raises QuantizationError where the group size does not divide a layer, the method has not this
    precision or lacks data, or a scale comes out zero or infinite; InputError for unknown layers.
    """
    feeds = _check(program, precision, method, calibration)
    size = _group_size(precision, group_size)
    graph = program.exported.module(check_guards=False)
    weights = _chosen(find_weights(graph), keep_float)
    _check_groups(weights, size)
    if method in DATA_AWARE:
        from sdk.compilers.weight_only_nncf import compress_by_data  # needs nncf

        graph = compress_by_data(
            program, graph, weights, method=method, size=size or GROUP, feeds=feeds
        )
        weights = _without(find_weights(graph), keep_float)
    _compress_each(graph, weights, precision, method, size, step)
    kept = tuple(sorted({layer for w in find_weights(graph) for layer in w.layers}))
    settings = {"method": method, "group_size": "channel" if size is None else str(size)}
    made = reexport(graph, program, program.signature.zeros())
    return replace(made, precision=precision, float_layers=kept, settings=settings, base=program)


def _check(
    program: Program, precision: str, method: str, calibration: Iterable[Feed]
) -> list[Feed]:
    """The calibration feeds where the method wants some; QuantizationError if it cannot be used."""
    if method not in METHODS[precision]:
        having = [name for name, methods in METHODS.items() if method in methods]
        raise QuantizationError(
            f"The method {method!r} cannot make {precision}.",
            expected=f"one of {', '.join(METHODS[precision])}",
            got=method,
            fix=f"it is there for {', '.join(having)}" if having else None,
        )
    if method not in DATA_AWARE:
        return []
    feeds = list(calibration)
    if not feeds:
        raise QuantizationError(
            f"The method {method!r} needs calibration data.",
            expected="calibration=[batch, ...] of real inputs",
            got="none",
            fix="pass some batches of real inputs, or use the methods rtn or hqq, which need none",
        )
    return list(check_calibration(program.signature, feeds))


def _group_size(precision: str, given: int | None) -> int | None:
    """Weights per scale; None is the whole row."""
    if precision == "w8":
        if given is not None:
            raise QuantizationError(
                "w8 has one scale per output channel.",
                got=f"group_size={given}",
                fix="leave group_size out",
            )
        return None
    size = GROUP if given is None else given
    if size not in GROUPS:
        raise QuantizationError(
            f"The group size {size} is not one that engines have.",
            expected=f"one of {', '.join(map(str, GROUPS))}",
            got=size,
        )
    return size


def _chosen(weights: list[Weight], keep_float: Collection[str]) -> list[Weight]:
    """The weights to compress; InputError or QuantizationError where there are none."""
    known = [layer for weight in weights for layer in weight.layers]
    unknown = sorted(set(keep_float) - set(known))
    if unknown:
        raise InputError(
            f"keep_float names the unknown layer {unknown[0]!r}.",
            expected=f"one of {', '.join(dict.fromkeys(known))}",
            got=unknown,
        )
    chosen = _without(weights, keep_float)
    if not chosen:
        raise QuantizationError(
            "The model has no linear or embedding layer whose weight could be compressed.",
            expected="nn.Linear, nn.Embedding or a product with a constant matrix",
            got=f"{len(known)} such layers, all kept in float" if known else "none",
            fix="use int8, which quantizes convolutions too, or fp16",
        )
    return chosen


def _without(weights: list[Weight], keep_float: Collection[str]) -> list[Weight]:
    """All but those to be kept, and those of one input, which would only grow."""
    return [w for w in weights if w.matrix.shape[1] > 1 and not {*w.layers} & {*keep_float}]


def _check_groups(weights: list[Weight], size: int | None) -> None:
    """QuantizationError naming the layers that groups of `size` do not fit."""
    bad = [weight for weight in weights if size is not None and weight.matrix.shape[1] % size]
    if not bad:
        return
    first, rows = bad[0], {weight.matrix.shape[1] for weight in bad}
    layers = [layer for weight in bad for layer in weight.layers]
    fits = [str(g) for g in GROUPS if all(width % g == 0 for width in rows)]
    keep = ", ".join(repr(layer) for layer in layers)
    raise QuantizationError(
        f"The layer {first.layers[0]!r} has {first.matrix.shape[1]} inputs, which groups of {size} "
        "do not divide.",
        expected=f"rows of a multiple of {size}",
        got=f"{len(layers)} such layers, of {', '.join(map(str, sorted(rows)))} inputs",
        fix=(f"group_size={' or '.join(fits)}, or " if fits else "") + f"keep_float=[{keep}]",
    )


def _compress_each(
    graph: GraphModule,
    weights: list[Weight],
    precision: str,
    method: str,
    size: int | None,
    step: Step | None,
) -> None:
    """Each weight for itself, in place."""
    for index, weight in enumerate(weights):
        matrix = weight.matrix
        if not bool(torch.isfinite(matrix).all()):
            raise QuantizationError(f"A weight of {weight.layers[0]!r} is NaN or infinite.")
        store(graph, weight, to_groups(matrix, precision, size or matrix.shape[1], method))
        if step is not None:
            step("compress weights", index + 1, len(weights))


def to_groups(matrix: Tensor, precision: str, size: int, method: str) -> Groups:
    """`matrix` [N, K] in groups of `size`: rounded to nearest, or with torchao's HQQ scales."""
    limit = 1 << BITS[precision] - 1
    groups = matrix.reshape(matrix.shape[0], -1, size)
    signs = torch.ones_like(groups[:, :, :1]) if precision == "w8" else _signs(groups)
    if method == "hqq":
        scale = _hqq_scale(groups * signs, DTYPE[precision])
    else:
        scale = groups.abs().amax(-1, keepdim=True) / (limit - 1 if precision == "w8" else limit)
    scale = _storable(scale, groups) * signs
    if bool((scale.abs() <= HALF[1]).all() & (scale.abs() >= HALF[0]).all()):
        scale = scale.half()
    q = (groups / scale.float()).round().clamp(-limit, limit - 1).to(torch.int8)
    return Groups(q.reshape(matrix.shape), scale.squeeze(-1), BITS[precision])


def _hqq_scale(groups: Tensor, dtype: torch.dtype) -> Tensor:
    """Half-quadratic quantization's positive scale of each group."""
    rows, count, size = groups.shape
    made = IntxUnpackedToInt8Tensor.from_hp(
        groups.reshape(rows, -1),
        (1, size),
        dtype,
        mapping_type=MappingType.SYMMETRIC,
        intx_choose_qparams_algorithm=IntxChooseQParamsAlgorithm.HQQ_SCALE_ONLY,
    )
    scale: Tensor = made.scale.reshape(rows, count, 1)
    return scale


def _signs(groups: Tensor) -> Tensor:
    """What turns each group's largest value negative: there the grid has one step more."""
    largest = groups.gather(-1, groups.abs().argmax(-1, keepdim=True))
    return torch.where(largest > 0, -1.0, 1.0)


def _storable(scale: Tensor, groups: Tensor) -> Tensor:
    """Groups of zeros, for which any scale is right, get one that every engine can store."""
    return torch.where(groups.abs().amax(-1, keepdim=True) > 0, scale, HALF[0])
