"""Which edges get a Q/DQ pair for an NPU: those around every operator, constants included.

An NPU's integer kernels take an operator only if all its float inputs and its output are on a grid;
a single one that is not goes to half precision there or back to the CPU. `spread` first takes apart
what would hide float arithmetic inside one operator.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import GraphModule, Node

from sdk.compilers.annotate import (
    ACTIVATION,
    MOVES,
    WEIGHT,
    WEIGHTED,
    IntegerKernels,
    aten,
    fused_clip,
    is_float,
    is_weight,
    layer_of,
    mark,
)
from sdk.extras import quiet

with quiet("torchao"):
    from torchao.quantization.pt2e.quantizer import (
        QuantizationAnnotation,
        SharedQuantizationSpec,
    )

# What stands for minus infinity, or the least float, where scores are masked: exp(-32) is nothing,
# and a grid that reaches to infinity has no step left for the scores themselves.
MASKED = -32.0
LARGEST = 65504.0  # of half precision; no activation is beyond it, a mask is
VIEWS = {
    *MOVES, aten._unsafe_view.default, aten.clone.default, aten.select.int, aten.slice.Tensor,
    aten.squeeze.dim, aten.squeeze.dims, aten.unsqueeze.default, aten.expand.default,
    aten.contiguous.default, aten.embedding.default, aten.repeat.default,
}  # fmt: skip
# One node with a state or statistics inside: the NPU runs it in half precision.
WHOLE = {
    aten.lstm.input, aten.gru.input, aten.batch_norm.default, aten.instance_norm.default,
    operator.getitem,
}  # fmt: skip
# Of a layer norm, whose bias becomes 32 bits: QNN has it in integers at 8 bits only.
GAIN = ACTIVATION["int8"]
SCALARS = {
    aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor, aten.div.Tensor, aten.add_.Tensor,
    aten.sub_.Tensor, aten.mul_.Tensor, aten.div_.Tensor,
}  # fmt: skip


class EveryOperator(IntegerKernels):
    """Marks every operator on floats, save those in `WHOLE` and the layers that stay in float."""

    def annotate(self, model: GraphModule) -> GraphModule:
        """Mark `model` in place."""
        for node in model.graph.nodes:
            if node.op == "call_function" and is_float(node) and node.target not in WHOLE:
                self._annotate(node)
        self._check_kept()
        return model

    def _annotate(self, node: Node) -> None:
        floats = [source for source in node.all_input_nodes if is_float(source)]
        layer = layer_of(node)
        self.layers.append(layer)
        if layer in self.keep_float or not floats:
            return
        if _fuses(floats[0]) and fused_clip(floats[0]) is node:
            mark(node, QuantizationAnnotation(output_qspec=self.activation))
            return
        inputs: dict[Any, Any] = {source: self.activation for source in floats}
        if node.target in WEIGHTED and is_weight(node.args[1]):
            inputs = {floats[0]: self.activation, node.args[1]: WEIGHT[WEIGHTED[node.target]]}
        elif node.target is aten.layer_norm.default and len(floats) > 1:
            inputs = {floats[0]: self.activation, floats[1]: GAIN}
        output: Any = self.activation
        if node.target in VIEWS:
            output = SharedQuantizationSpec((floats[0], node))
        elif _fuses(node) and fused_clip(node) is not node:
            output = None
        mark(node, QuantizationAnnotation(inputs, output))


def _fuses(node: Node) -> bool:
    """Whether the engine fuses a clip behind the node into it."""
    return node.target in WEIGHTED


def spread(exported: ExportedProgram) -> GraphModule:
    """The program with each hidden float step, and each constant, as a node of its own."""
    if any(node.target in RULES for node in exported.graph.nodes):
        exported = exported.run_decompositions(dict(RULES))
    graph = exported.module(check_guards=False)
    _restore_batch_norms(graph)
    _bound_masks(graph)
    _name_scalars(graph)
    _fill_tables(graph)
    graph.recompile()
    return graph


def _attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    attn_mask: Tensor | None = None,
    _dropout: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """softmax(q k^T / sqrt(d) + mask) v, in steps."""
    if enable_gqa:
        k, v = (x.repeat_interleave(q.shape[-3] // x.shape[-3], -3) for x in (k, v))
    scores = torch.matmul(q * (scale or q.shape[-1] ** -0.5), k.transpose(-2, -1))
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
    if attn_mask is not None:
        scores = scores + _additive(attn_mask)
    return torch.matmul(torch.softmax(scores, -1), v)


def _additive(mask: Tensor) -> Tensor:
    if mask.dtype == torch.bool:
        return torch.logical_not(mask).to(torch.float32) * MASKED
    return mask.clamp(min=MASKED)


def _flat_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Any:
    """On rows: with more dimensions ONNX has a product and an addition, quantized apart."""
    if x.dim() == 2:
        return NotImplemented
    rows = aten.linear.default(x.reshape(-1, x.shape[-1]), weight, bias)
    return rows.reshape(*x.shape[:-1], weight.shape[0])


def _group_norm(
    x: Tensor,
    groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    _cudnn: bool = True,
) -> Tensor:
    """By instances: ONNX's own operator for it is refused by QNN in another layout than it asks."""
    parts = x.reshape(x.shape[0], groups, -1)
    normal = aten.instance_norm.default(parts, None, None, None, None, True, 0.0, eps, False)
    y: Tensor = normal.reshape(x.shape)
    each = (-1, *[1] * (x.dim() - 2))
    y = y if weight is None else y * weight.reshape(each)
    return y if bias is None else y + bias.reshape(each)


def _unbind(x: Tensor, dim: int = 0) -> list[Tensor]:
    return [x.select(dim, index) for index in range(x.shape[dim])]


def _split(x: Tensor, size: int, dim: int = 0) -> list[Tensor]:
    length = x.shape[dim]
    return [x.narrow(dim, at, min(size, length - at)) for at in range(0, length, size)]


def _split_sizes(x: Tensor, sizes: list[int], dim: int = 0) -> list[Tensor]:
    starts = [sum(sizes[:index]) for index in range(len(sizes))]
    return [x.narrow(dim, start, size) for start, size in zip(starts, sizes, strict=True)]


def _chunk(x: Tensor, chunks: int, dim: int = 0) -> list[Tensor]:
    return _split(x, -(-x.shape[dim] // chunks), dim)


RULES: dict[Any, Callable[..., Any]] = {
    aten.scaled_dot_product_attention.default: _attention,
    aten.linear.default: _flat_linear,
    aten.group_norm.default: _group_norm,
    aten.silu.default: lambda x: x * torch.sigmoid(x),
    aten.unbind.int: _unbind,
    aten.split.Tensor: _split,
    aten.split_with_sizes.default: _split_sizes,
    aten.chunk.default: _chunk,
}


def _restore_batch_norms(graph: GraphModule) -> None:
    """The form that is folded into convolutions, of which decomposing makes another one."""
    for node in list(graph.graph.nodes):
        if node.target is not aten._native_batch_norm_legit_no_training.default:
            continue
        x, weight, bias, mean, variance, momentum, eps = node.args
        arguments = (x, weight, bias, mean, variance, False, momentum, eps, False)
        with graph.graph.inserting_before(node):
            plain = graph.graph.call_function(aten.batch_norm.default, arguments)
        plain.meta = {**node.meta, "val": node.meta["val"][0]}
        for user in list(node.users):
            user.replace_all_uses_with(plain)
            graph.graph.erase_node(user)
        graph.graph.erase_node(node)


def _name_scalars(graph: GraphModule) -> None:
    """Numbers in float arithmetic become constants of one element, which can have a grid."""
    for node in list(graph.graph.nodes):
        if not is_float(node):
            continue
        if node.target in SCALARS and not isinstance(node.args[1], Node):
            value = _bounded(torch.tensor([float(node.args[1])]))
            node.args = (node.args[0], _constant(graph, node, value), *node.args[2:])
        elif node.target is aten.masked_fill.Scalar:
            x, mask, number = node.args
            value = _bounded(torch.tensor([float(number)]))
            node.target, node.args = aten.where.self, (mask, _constant(graph, node, value), x)


def _bound_masks(graph: GraphModule) -> None:
    """Constants that hold infinities or the least float hold `MASKED` there instead."""
    for node in list(graph.graph.nodes):
        if node.op != "get_attr" or not is_float(node):
            continue
        value = operator.attrgetter(node.target)(graph).detach()
        if bool((value.abs() > LARGEST).any()):
            node.replace_all_uses_with(_constant(graph, node, _bounded(value)))


def _bounded(value: Tensor) -> Tensor:
    return torch.where(value.abs() > LARGEST, value.sign() * abs(MASKED), value)


def _fill_tables(graph: GraphModule) -> None:
    """A table that is added for each of a batch, before a layer norm, gets the batch's shape.

    QNN 2.51 adds and normalises in one step of its own then, which in 16 bits reads other rows of
    the table than it should (seen on the simulator).
    """
    for node in list(graph.graph.nodes):
        if node.target is not aten.add.Tensor or not _is_normed(node):
            continue
        shape = node.meta["val"].shape
        for index, source in enumerate(node.args[:2]):
            if (
                is_weight(source)
                and source.meta["val"].dim() > 1
                and source.meta["val"].shape != shape
            ):
                table = operator.attrgetter(source.target)(graph).detach()
                filled = _constant(graph, node, table.expand(shape).contiguous())
                node.update_arg(index, filled)


def _is_normed(node: Node) -> bool:
    return any(user.target is aten.layer_norm.default for user in node.users)


def _constant(graph: GraphModule, before: Node, value: Tensor) -> Node:
    name = f"_constant_{len(graph._buffers)}_{before.name}"
    graph.register_buffer(name, value)
    with graph.graph.inserting_before(before):
        constant: Node = graph.graph.get_attr(name)
    constant.meta["val"] = value
    return constant
