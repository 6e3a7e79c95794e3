"""From the nodes of a checked ONNX graph to a module."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from sdk.compilers.onnx_ops.modules import Graph, Node, Slot, Step, named, unique
from sdk.compilers.onnx_ops.table import HOST_INPUTS, HOST_OPERATORS, LIMITS, WEIGHTS, rule_for
from sdk.compilers.onnx_ops.values import HOST_LIMIT, Host, Rule, dtype_of, from_numpy
from sdk.errors import UnsupportedOperatorError

if TYPE_CHECKING:
    from onnx import AttributeProto, GraphProto, NodeProto, TensorProto

# computed once, at import, where all inputs are constant; none of them makes a tensor larger
FOLDED = {"Cast", "Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"}
SEVERAL_OUTPUTS = {"Dropout", "Split", "TopK"}
STATISTICS = {"running_mean", "running_var"}


@dataclass(frozen=True)
class Constant:
    """A tensor of the file; `host` is the same as an array, where it is small."""

    tensor: Tensor
    host: Host | None

    @classmethod
    def of(cls, array: Host) -> Constant:
        """Both forms of one array."""
        small = array.size <= HOST_LIMIT and array.dtype.name != "bfloat16"
        return cls(from_numpy(array), array if small else None)


def build(graph: GraphProto, opset: int, inputs: list[str], outputs: tuple[str, ...]) -> Graph:
    """A module whose parameters are the graph's weights; names of submodules are the nodes'.

    Raises UnsupportedOperatorError for attributes, types or outputs that the rules do not cover.
    """
    return _Builder(graph, opset).module(inputs, outputs)


def title(node: NodeProto) -> str:
    """How messages name a node: its operator, and its name or what it makes."""
    return f"{node.op_type} {node.name or '-> ' + ', '.join(node.output)}"


def _plain(attribute: AttributeProto) -> Any:
    """An attribute as int, float, str, list or array."""
    from onnx import TensorProto, helper, numpy_helper

    value = helper.get_attribute_value(attribute)
    if isinstance(value, TensorProto):
        dtype_of(value.data_type, attribute.name)
        return numpy_helper.to_array(value)
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    return list(value) if isinstance(value, Iterable) and not isinstance(value, str) else value


def _attributes(node: NodeProto, rule: Rule) -> dict[str, Any]:
    """Attributes that the rule takes; what it cannot honour is refused."""
    taken: Mapping[str, object] = {}
    if inspect.isfunction(rule):
        taken = inspect.signature(rule).parameters
    values = {a.name: _plain(a) for a in node.attribute}
    limits = LIMITS.get(node.op_type, {})
    for name, value in values.items():
        allowed = limits.get(name, () if name not in taken else None)
        if allowed is not None and value not in allowed:
            raise UnsupportedOperatorError(
                f"{title(node)} has {name}={value!r}, which the importer does not cover.",
                expected=f"{name} in {list(allowed)}" if allowed else f"no {name}",
            )
    if node.op_type == "Split":
        values["num_outputs"] = len(node.output)
    return {name: value for name, value in values.items() if name in taken}


def _stored(tensor: TensorProto) -> Constant:
    from onnx import numpy_helper

    dtype_of(tensor.data_type, tensor.name)
    return Constant.of(numpy_helper.to_array(tensor))


def _constant_node(node: NodeProto) -> Constant:
    """The value of a Constant node, in any of its attributes' forms."""
    dtypes = {"value_int": "int64", "value_ints": "int64", "value_float": "float32"}
    attribute = node.attribute[0]
    if attribute.name not in {"value", "value_floats", *dtypes}:
        raise UnsupportedOperatorError(f"{title(node)} has a {attribute.name}.", expected="numbers")
    if attribute.name == "value":
        return _stored(attribute.t)
    return Constant.of(np.asarray(_plain(attribute), dtypes.get(attribute.name, "float32")))


def _transposes(node: NodeProto, attributes: dict[str, Any], weight: Constant | None) -> bool:
    """Whether B is a constant matrix that is to be stored as a fully connected layer's weight."""
    if node.op_type not in ("Gemm", "MatMul") or weight is None or attributes.get("transB"):
        return False
    return weight.tensor.dim() == 2 and weight.tensor.is_floating_point()


def _with_last_use(steps: list[Step], outputs: tuple[str, ...]) -> list[Step]:
    """Steps that say which values they are the last to read, so that memory is given back."""
    needed, result = set(outputs), []
    for step in reversed(steps):
        names = (*step.inputs, *step.outputs)
        result.append(replace(step, last=tuple(dict.fromkeys(n for n in names if n not in needed))))
        needed.update(names)
    return result[::-1]


class _Builder:
    """Walks the nodes once: folds constants, makes the submodules, lists the steps."""

    def __init__(self, graph: GraphProto, opset: int) -> None:
        self.graph, self.opset = graph, opset
        self.constants = {tensor.name: _stored(tensor) for tensor in graph.initializer}
        self.shared: dict[tuple[str, str], Tensor] = {}  # (constant, layout) -> the one copy
        self.modules: list[tuple[str, Node]] = []
        self.steps: list[Step] = []

    def module(self, inputs: list[str], outputs: tuple[str, ...]) -> Graph:
        """Walk, then put together."""
        nodes = list(self.graph.node)
        names = unique(node.name or f"{node.op_type}_{i}" for i, node in enumerate(nodes))
        for name, node in zip(names, nodes, strict=True):
            self._visit(name, node)
        for name in dict.fromkeys(outputs):
            if name in self.constants:
                self._emit(*self._constant_output(name))
        graph = named(inputs)(_with_last_use(self.steps, outputs), inputs, outputs)
        for name, module in self.modules:
            graph.add_module(name, module)
        return graph

    def _visit(self, name: str, node: NodeProto) -> None:
        if node.op_type == "Constant":
            self.constants[node.output[0]] = _constant_node(node)
            return
        if sum(map(bool, node.output)) > 1 and node.op_type not in SEVERAL_OUTPUTS:
            raise UnsupportedOperatorError(
                f"{title(node)} has {len(node.output)} outputs.",
                expected=f"the first output of {node.op_type} alone",
            )
        module = self._node(node)
        folded = self._folded(node, module)
        if folded is None:
            self._emit(name, node, module)
        else:
            self.constants.update(zip(node.output, folded, strict=False))

    def _constant_output(self, name: str) -> tuple[str, NodeProto, Node]:
        """A step that returns a constant."""
        from onnx import helper

        node = helper.make_node("Identity", [name], [name])
        label = unique([*(taken for taken, _ in self.modules), f"output_{name}"])[-1]
        return label, node, self._node(node)

    def _emit(self, name: str, node: NodeProto, module: Node) -> None:
        passed = zip(node.input, module.slots, strict=True)
        inputs = tuple(source for source, slot in passed if slot.passed)
        self.modules.append((name, module))
        self.steps.append(Step(name, inputs, tuple(node.output)))

    def _folded(self, node: NodeProto, module: Node) -> list[Constant] | None:
        """The node's outputs, if they are constant and small, or a weight in another layout."""
        if any(slot.passed for slot in module.slots) or not module.slots:
            return None
        result = module.on_host([slot.host for slot in module.slots])
        if result is None and node.op_type in FOLDED:
            with torch.no_grad():
                tensor = module().detach()
            return [Constant(tensor, tensor.numpy() if tensor.numel() <= HOST_LIMIT else None)]
        if result is None:
            return None
        return [Constant.of(part) for part in (result if isinstance(result, tuple) else (result,))]

    def _node(self, node: NodeProto) -> Node:
        rule = rule_for(node.op_type, self.opset)
        attributes = _attributes(node, rule)
        second = self.constants.get(node.input[1]) if len(node.input) > 1 else None
        transposed = _transposes(node, attributes, second)
        if transposed:
            attributes["transB"] = 1
        module = Node(title(node), node.op_type, rule, attributes)
        for position, name in enumerate(node.input):
            module.slots.append(self._slot(module, position, name, transposed))
        return module

    def _slot(self, module: Node, position: int, name: str, transposed: bool) -> Slot:
        constant = self.constants.get(name)
        if constant is None:
            return Slot(passed=bool(name))
        if constant.host is not None and _host_only(module.op, position, constant.host):
            return Slot(host=constant.host)
        names = WEIGHTS.get(module.op, ())
        label = names[position] if position < len(names) else f"constant_{position}"
        layout = _layout(module.op, position, constant.tensor, transposed)
        weight = bool(names) and label not in STATISTICS and constant.tensor.is_floating_point()
        tensor = self._share(name, layout, constant.tensor, weight)
        if isinstance(tensor, nn.Parameter):
            module.register_parameter(label, tensor)
        else:
            module.register_buffer(label, tensor)
        return Slot(attribute=label, host=constant.host)

    def _share(self, name: str, layout: str, tensor: Tensor, weight: bool) -> Tensor:
        """The one tensor for all nodes that read a constant in this layout."""
        if (name, layout) not in self.shared:
            laid = tensor.t().contiguous() if layout == "transposed" else tensor
            laid = laid.reshape(-1) if layout == "row" else laid
            self.shared[name, layout] = nn.Parameter(laid) if weight else laid
        return self.shared[name, layout]


def _host_only(op: str, position: int, host: Host) -> bool:
    """Whether a small constant is a shape, or an integer for an operator that computes shapes."""
    integral = np.issubdtype(host.dtype, np.integer) or host.dtype == np.bool_
    return position in HOST_INPUTS.get(op, ()) or (op in HOST_OPERATORS and integral)


def _layout(op: str, position: int, tensor: Tensor, transposed: bool) -> str:
    """How a constant is stored: Gemm's bias as a vector, a transposed weight, else as it is."""
    if op == "Gemm" and position == 2 and tensor.dim() == 2 and tensor.shape[0] == 1:
        return "row"
    return "transposed" if transposed and position == 1 else "plain"
