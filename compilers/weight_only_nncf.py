"""Weight-only methods that look at data, by NNCF: AWQ, scale estimation and GPTQ.

NNCF has the first two for the very graph that a program is: it works on a copy, whose integers and
scales are read back, and what AWQ multiplies elsewhere stays in it. It has GPTQ for OpenVINO models
alone: there the program's ONNX file is read, and the numbers of its layers are put into the graph.
"""

from __future__ import annotations

import contextlib
import io
import os
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from sdk.compilers.onnx_file import write_onnx
from sdk.compilers.program import Feed, Program, SourceLine
from sdk.compilers.weight_only_graph import Groups, Weight, dequantized, store, turn
from sdk.errors import QuantizationError
from sdk.extras import quiet, require

BITS = 4
SILENT = "NNCF_CI"  # set while it is imported, or it would report its use to its makers
LIMIT = 0.5  # of a weight's relative change; GPTQ changes them by 0.1 to 0.2
WEIGHTED = ("MatMul", "Gather", "Convolution", "GroupConvolution", "ConvolutionBackpropData")


def compress_by_data(
    program: Program,
    graph: GraphModule,
    weights: list[Weight],
    *,
    method: str,
    size: int,
    feeds: list[Feed],
) -> GraphModule:
    """`graph` with `weights` as int4 in groups of `size`, chosen by `method` on `feeds`.

    What NNCF has no such method for is float still: embeddings under GPTQ.
    """
    with _silent():
        if method == "gptq":
            found = _gptq(program, weights, size, feeds)
            for weight in weights:
                if weight.name in found:
                    store(graph, weight, _near(_checked(found[weight.name], weight), weight))
            return graph
        made: GraphModule = _compress(
            graph, _tensors(program, feeds), size, _others(graph, weights), method
        )
    _unwrap(made, weights)
    return made


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Without its progress bars, and its advice to use hundreds of samples."""
    with quiet("nncf"), warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


def _nncf() -> Any:
    before = os.environ.get(SILENT)
    os.environ[SILENT] = before or "1"
    try:
        return require("nncf", purpose="A weight-only method that looks at data")
    finally:
        if before is None:
            del os.environ[SILENT]


def _tensors(program: Program, feeds: list[Feed]) -> list[Any]:
    """Samples as an exported module takes them: a tensor, or a tuple of several."""
    names = [spec.name for spec in program.signature.inputs]
    samples = [tuple(torch.from_numpy(feed[name]) for name in names) for feed in feeds]
    return [sample[0] if len(sample) == 1 else sample for sample in samples]


def _compress(model: Any, samples: list[Any], size: int, ignored: list[str], method: str) -> Any:
    nncf = _nncf()
    return nncf.compress_weights(
        model,
        mode=nncf.CompressWeightsMode.INT4_SYM,
        group_size=size,
        all_layers=True,
        dataset=nncf.Dataset(samples),
        subset_size=len(samples),
        ignored_scope=nncf.IgnoredScope(names=ignored, validate=False),
        **{method: True},
    )


def _others(graph: GraphModule, weights: list[Weight]) -> list[str]:
    """The operators whose weights stay as they are."""
    chosen = {use.layer.name for weight in weights for use in weight.uses}
    nodes = [node.name for node in graph.graph.nodes if node.op == "call_function"]
    return [name for name in nodes if name not in chosen]


def _unwrap(graph: GraphModule, weights: list[Weight]) -> None:
    """Put the program's own operators where NNCF's modules unpack or multiply, in place."""
    owners = {use.layer.name: weight for weight in weights for use in weight.uses}
    for node in [node for node in graph.graph.nodes if node.op == "call_module"]:
        module: Any = graph.get_submodule(str(node.target))
        reader = next((user for user in node.users if user.name in owners), None)
        with graph.graph.inserting_before(node):
            if hasattr(module, "_scale_value"):
                value = _multiplied(graph, node, module._scale_value)
            elif reader is not None:
                value = _dequantized(graph, node, module, owners[reader.name], reader)
            else:
                raise TypeError(f"an unknown module {type(module)} of NNCF's at {node.name}")
        node.replace_all_uses_with(value)
    graph.graph.eliminate_dead_code()
    graph.delete_all_unused_submodules()
    graph.recompile()
    _check_finite(graph)


def _multiplied(graph: GraphModule, node: Node, factor: Tensor) -> Node:
    """The activation times what AWQ divided the weight behind it by."""
    name = f"{node.name}_factor"
    graph.register_buffer(name, factor)
    return graph.graph.call_function(
        torch.ops.aten.mul.Tensor, (node.all_input_nodes[0], graph.graph.get_attr(name))
    )


def _dequantized(graph: GraphModule, node: Node, module: Any, weight: Weight, reader: Node) -> Node:
    groups = _checked(_unpacked(graph, node, module, weight), weight)
    value = dequantized(graph, weight.name.replace(".", "_"), groups, reader)
    return turn(graph, value, reader) if weight.turned else value


def _unpacked(graph: GraphModule, node: Node, module: Any, weight: Weight) -> Groups:
    from nncf.torch.quantization.quantize_functions import unpack_int4  # NNCF is there by now

    packed = getattr(graph, str(node.all_input_nodes[0].target))
    q = unpack_int4(packed).reshape(module.compressed_weight_shape)
    return _groups(q, module._scale, weight)


def _groups(q: Tensor, scale: Tensor, weight: Weight) -> Groups:
    """From [N, groups, size] and [N, groups, 1], or their transposes of [K, N]."""
    rows, columns = weight.matrix.shape
    if weight.turned:
        q, scale = q.reshape(columns, rows).t(), scale.squeeze(1).t()
    return Groups(q.reshape(rows, columns).contiguous(), scale.reshape(rows, -1).contiguous(), BITS)


def _checked(groups: Groups, weight: Weight) -> Groups:
    """The groups; QuantizationError unless all scales are finite and not zero."""
    if bool(torch.isfinite(groups.scale).all()) and bool((groups.scale != 0).all()):
        return groups
    raise _unusable(weight.layers[0])


def _near(groups: Groups, weight: Weight) -> Groups:
    """The groups; QuantizationError where GPTQ saw no data and made zeros of the weight."""
    parts = groups.q.reshape(*groups.scale.shape, -1) * groups.scale.float().unsqueeze(-1)
    error = parts.reshape(weight.matrix.shape) - weight.matrix
    if bool(error.norm() > LIMIT * weight.matrix.norm()):
        raise _unusable(weight.layers[0])
    return groups


def _check_finite(graph: GraphModule) -> None:
    """What AWQ divided by must not have been zero."""
    for name, tensor in (*graph.named_parameters(), *graph.named_buffers()):
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise _unusable(name)


def _unusable(what: str) -> QuantizationError:
    return QuantizationError(
        f"The calibration data makes a scale of {what!r} zero or infinite, or says nothing of it.",
        expected="finite scales other than zero",
        fix="calibrate on real inputs, or use the methods rtn or hqq, which need none",
    )


def _gptq(
    program: Program, weights: list[Weight], size: int, feeds: list[Feed]
) -> dict[str, Groups]:
    """Name of a weight -> what GPTQ makes of it."""
    ov = require("openvino", purpose="GPTQ")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.onnx"
        sources = write_onnx(program, file)
        model = ov.Core().read_model(file)
    chosen = {
        node.get_friendly_name(): weight
        for node in model.get_ops()
        if (weight := _weight_of(node, sources, weights)) is not None
    }
    for node in model.get_ops():
        if node.get_friendly_name() in chosen:
            _straighten(ov, node, chosen[node.get_friendly_name()])
    weighted = [node for node in model.get_ops() if node.get_type_name() in WEIGHTED]
    ignored = [n.get_friendly_name() for n in weighted if n.get_friendly_name() not in chosen]
    names = [spec.name for spec in program.signature.inputs]
    samples = [tuple(feed[name] for name in names) for feed in feeds]
    made = _compress(model, samples, size, ignored, "gptq")
    nodes = {node.get_friendly_name(): node for node in made.get_ops()}
    return {weight.name: _read(nodes[name], weight) for name, weight in chosen.items()}


def _weight_of(
    node: Any, sources: Mapping[str, SourceLine], weights: list[Weight]
) -> Weight | None:
    """The weight that an OpenVINO product reads, by the layer that its ONNX node came from."""
    source = sources.get(node.get_friendly_name().partition("/")[0])
    if node.get_type_name() != "MatMul" or source is None:
        return None
    factor = node.input_value(1).get_node()
    while factor.get_input_size():
        factor = factor.input_value(0).get_node()
    found = [weight for weight in weights if source.module in weight.layers]
    return found[0] if len(found) == 1 and factor.get_type_name() == "Constant" else None


def _straighten(ov: Any, node: Any, weight: Weight) -> None:
    """Give the product its weight as outputs x inputs: NNCF's GPTQ takes no other."""
    constant = ov.op.Constant(np.ascontiguousarray(weight.matrix.numpy()))
    made = ov.opset13.matmul(node.input_value(0), constant, False, True)
    made.set_friendly_name(node.get_friendly_name())
    node.output(0).replace(made.output(0))


def _read(node: Any, weight: Weight) -> Groups:
    """The integers and scales of a compressed product."""
    node = node.input_value(1).get_node()
    while node.get_type_name() != "Multiply":
        node = node.input_value(0).get_node()
    scale = node.input_value(1).get_node().data
    while node.get_type_name() != "Constant":
        node = node.input_value(0).get_node()
    packed = node.get_data(dtype=np.int8).view(np.uint8)
    pairs = np.stack([packed & 15, packed >> 4], axis=-1).astype(np.int8)
    signed = torch.from_numpy(np.where(pairs > 7, pairs - 16, pairs).astype(np.int8))
    rows, columns = weight.matrix.shape
    scales = torch.from_numpy(np.array(scale, np.float16)).reshape(rows, -1)
    return Groups(signed.reshape(rows, columns), scales, BITS)
