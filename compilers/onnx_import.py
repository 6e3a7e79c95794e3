"""ONNX file -> torch module that torch.export captures with a dynamic batch.

A foreign ONNX file then takes the same path as a PyTorch model: exported program, quantize, lower.
Each node becomes a submodule that is named after it, so that an exported program's module stack names the
ONNX node; constants become parameters (weights) or buffers of the node that reads them. The
operators are in onnx_ops/; how shapes stay dynamic is told in onnx_ops/values.py. The file is not trusted: it
is parsed and checked before anything is computed, and no tensor is read from outside its folder.
"""

from __future__ import annotations

import difflib
import inspect
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from sdk.compilers.onnx_ops import (
    HOST_INPUTS,
    HOST_OPERATORS,
    LIMITS,
    OPERATORS,
    WEIGHTS,
    rule_for,
)
from sdk.compilers.onnx_ops.values import DTYPES, HOST_LIMIT, Host, Rule, as_tensor, from_numpy, tidy
from sdk.errors import InputError, UnsupportedOperatorError
from sdk.extras import require

if TYPE_CHECKING:
    from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto

__all__ = ["OPERATORS", "ImportedModel", "load"]

OLDEST_OPSET, NEWEST_OPSET = 7, 24
CONTROL_FLOW = ("If", "Loop", "Scan", "SequenceMap")
DOMAINS = ("", "ai.onnx")
# computed once, at import, where all inputs are constant; none of them makes a tensor larger
FOLDED = {"Cast", "Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"}


@dataclass(frozen=True)
class ImportedModel:
    """`module` takes the inputs by position, in graph order, and returns one tensor or a tuple.

    `inputs` has (name, NumPy dtype, shape) of each; a size is an int, or the name of a symbol.
    `outputs` has the names of the outputs.
    """

    module: nn.Module
    inputs: tuple[tuple[str, str, tuple[int | str, ...]], ...]
    outputs: tuple[str, ...]


def load(path: Path) -> ImportedModel:
    """Read an ONNX file (opset 7 to 24) into a module in eval mode.

    Raises InputError for a file that is missing, truncated, invalid, or points outside its folder,
    and UnsupportedOperatorError for operators, attributes, types or opsets that are not covered.
    """
    model = _parsed(Path(path))
    opset = _opset(model)
    _check_operators(model.graph, opset)
    _read_external_data(model, Path(path).parent)
    _check_valid(model)
    inputs = tuple(_described(value) for value in _true_inputs(model.graph))
    outputs = tuple(value.name for value in model.graph.output)
    module = _Builder(model.graph, opset).module([name for name, _, _ in inputs], outputs)
    return ImportedModel(module.eval(), inputs, outputs)


# ---- reading and checking the file ----------------------------------------------------------


def _parsed(path: Path) -> ModelProto:
    onnx = require("onnx", purpose="Reading an ONNX file")
    from google.protobuf.message import DecodeError

    try:
        model: ModelProto = onnx.load_model(path, load_external_data=False)
    except OSError as error:
        raise InputError(f"Cannot read {path}: {error.strerror}.") from error
    except DecodeError as error:
        raise InputError(
            f"{path} is not an ONNX file, or is truncated.", fix="download or export it again"
        ) from error
    if not model.graph.output or not model.opset_import:
        raise InputError(f"{path} holds no ONNX graph.", expected="a model with outputs and an opset")
    if model.functions:
        from onnx.inliner import inline_local_functions

        model = inline_local_functions(model)
    return model


def _opset(model: ModelProto) -> int:
    versions = [entry.version for entry in model.opset_import if entry.domain in DOMAINS]
    opset = max(versions, default=0)
    if not OLDEST_OPSET <= opset <= NEWEST_OPSET:
        raise UnsupportedOperatorError(
            "The ONNX file is of an opset that the importer does not cover.",
            expected=f"opset {OLDEST_OPSET} to {NEWEST_OPSET}",
            got=f"opset {opset}",
            fix="onnx.version_converter.convert_version(model, 17), or export it again",
        )
    return opset


def _check_operators(graph: GraphProto, opset: int) -> None:
    """Refuse unknown operators, all in one message."""
    unknown = [n for n in graph.node if n.op_type != "Constant" and not _known(n)]
    if not unknown:
        return
    lines = [f"{_title(node)} (domain {node.domain or 'ai.onnx'}, opset {opset})" for node in unknown]
    names = sorted({node.op_type for node in unknown})
    near = {name: difflib.get_close_matches(name, OPERATORS, 2) for name in names}
    hints = [f"{name}: the importer has {', '.join(found)}" for name, found in near.items() if found]
    if set(names) & set(CONTROL_FLOW):
        hints.append("control flow (If, Loop, Scan) is not covered: fold it with onnxsim")
    raise UnsupportedOperatorError(
        f"The ONNX file has operators that the importer lacks: {', '.join(names)}.",
        got="; ".join(lines[:20]) + (f"; and {len(lines) - 20} more" if len(lines) > 20 else ""),
        fix="; ".join(hints) or "export the model with standard operators",
    )


def _known(node: NodeProto) -> bool:
    return node.domain in DOMAINS and node.op_type in OPERATORS


def _title(node: NodeProto) -> str:
    return f"{node.op_type} {node.name or '-> ' + ', '.join(node.output)!s}"


def _tensors(graph: GraphProto) -> Iterator[TensorProto]:
    yield from graph.initializer
    yield from (a.t for n in graph.node for a in n.attribute if a.HasField("t"))


def _read_external_data(model: ModelProto, folder: Path) -> None:
    """Load tensors that are kept beside the file, from its own folder only."""
    from onnx import TensorProto
    from onnx.external_data_helper import load_external_data_for_tensor

    for tensor in _tensors(model.graph):
        if tensor.data_location != TensorProto.EXTERNAL:
            continue
        _check_location(tensor, folder)
        try:
            load_external_data_for_tensor(tensor, str(folder))
        except (OSError, ValueError) as error:
            raise InputError(f"External data of {tensor.name!r} cannot be read: {error}") from error
        tensor.data_location = TensorProto.DEFAULT
        del tensor.external_data[:]


def _check_location(tensor: TensorProto, folder: Path) -> None:
    location = next((e.value for e in tensor.external_data if e.key == "location"), "")
    place = (folder / location).resolve()
    if not location or Path(location).is_absolute() or not place.is_relative_to(folder.resolve()):
        raise InputError(
            f"External data of {tensor.name!r} lies outside the model's folder.",
            expected="a relative path within the folder",
            got=repr(location),
        )
    if not place.is_file():
        raise InputError(
            f"External data of {tensor.name!r} is missing.",
            expected=f"the file {location!r} beside the model",
            fix="copy it there, or save the model with its data inside",
        )


def _check_valid(model: ModelProto) -> None:
    from onnx import checker

    if model.graph.sparse_initializer:
        raise UnsupportedOperatorError("The ONNX file has sparse initializers.", fix="store them dense")
    try:
        checker.check_model(model)
    except (checker.ValidationError, ValueError) as error:
        raise InputError("The ONNX file breaks the ONNX specification.", got=str(error)) from error


def _true_inputs(graph: GraphProto) -> list[ValueInfoProto]:
    """Inputs that the caller gives; before IR 4 initializers were listed among them."""
    stored = {tensor.name for tensor in graph.initializer}
    return [value for value in graph.input if value.name not in stored]


def _dtype(data_type: int, name: str) -> torch.dtype:
    if data_type in DTYPES:
        return DTYPES[data_type]
    from onnx import TensorProto

    raise UnsupportedOperatorError(
        f"{name!r} has a type that the importer does not cover.",
        expected="a float of 16, 32 or 64 bits, an integer of 8 to 64 bits, or bool",
        got=TensorProto.DataType.Name(data_type),
    )


def _described(value: ValueInfoProto) -> tuple[str, str, tuple[int | str, ...]]:
    if not value.type.HasField("tensor_type") or not value.type.tensor_type.HasField("shape"):
        raise UnsupportedOperatorError(
            f"Input {value.name!r} is not a tensor of known rank.",
            expected="a tensor with a shape",
            fix="export the model with shapes",
        )
    dtype = _dtype(value.type.tensor_type.elem_type, value.name)
    dims = enumerate(value.type.tensor_type.shape.dim)
    sizes = (
        d.dim_value if d.HasField("dim_value") else d.dim_param or f"{value.name}_{axis}"
        for axis, d in dims
    )
    return value.name, str(dtype).removeprefix("torch."), tuple(sizes)


# ---- from nodes to modules ------------------------------------------------------------------


def _identifier(name: str) -> str:
    text = re.sub(r"\W+", "_", name, flags=re.ASCII).strip("_")
    text = f"_{text}" if not text or text[0].isdigit() else text
    return f"{text}_" if hasattr(nn.Module, text) or text in ("inputs", "self", "training") else text


def _unique(names: Iterable[str]) -> list[str]:
    """Valid, distinct Python names in the same order."""
    taken: Counter[str] = Counter()
    result: list[str] = []
    for name in map(_identifier, names):
        candidate = name
        while taken[candidate]:
            candidate = f"{name}_{taken[name]}"
            taken[name] += 1
        taken[candidate] += 1
        result.append(candidate)
    return result


def _plain(attribute: AttributeProto) -> Any:
    """An attribute as int, float, str, list or array."""
    from onnx import TensorProto, helper, numpy_helper

    value = helper.get_attribute_value(attribute)
    if isinstance(value, TensorProto):
        _dtype(value.data_type, attribute.name)
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
                f"{_title(node)} has {name}={value!r}, which the importer does not cover.",
                expected=f"{name} in {list(allowed)}" if allowed else f"no {name}",
            )
    if node.op_type == "Split":
        values["num_outputs"] = len(node.output)
    return {name: value for name, value in values.items() if name in taken}


@dataclass(frozen=True)
class Slot:
    """Where one input of a node comes from: a constant of the node, or the values passed to it."""

    attribute: str | None = None  # the buffer or parameter
    host: Host | None = None  # the same constant on the host, where it is small
    passed: bool = False


class Node(nn.Module):
    """One ONNX node: its rule, its attributes, its constants; `origin` names it in the file."""

    def __init__(self, node: NodeProto, rule: Rule, attributes: dict[str, Any]) -> None:
        super().__init__()
        self.origin, self.op, self.rule, self.attributes = _title(node), node.op_type, rule, attributes
        self.host_rule = HOST_OPERATORS.get(node.op_type)
        self.slots: list[Slot] = []

    def extra_repr(self) -> str:
        """The node's operator and name in the file."""
        return self.origin

    def forward(self, *passed: Tensor | Host) -> Any:
        """One tensor, host array, or a tuple of them, as the node has outputs."""
        rest = iter(passed)
        values = [next(rest) if slot.passed else slot.host for slot in self.slots]
        try:
            result = self._on_host(values)
            return self._on_tensors(values) if result is None else result
        except (RuntimeError, TypeError, ValueError, IndexError) as error:
            error.add_note(f"in ONNX node {self.origin}")
            raise

    def _on_host(self, values: list[Any]) -> Any:
        """The result as host arrays if all inputs are shapes and the operator can, else None."""
        if self.op in ("Shape", "Size"):
            return tidy(self.rule(*values, **self.attributes))
        absent = [slot == Slot() for slot in self.slots]
        ready = all(a or isinstance(v, np.ndarray) for a, v in zip(absent, values, strict=True))
        if self.host_rule is None or not ready:
            return None
        result = self.host_rule(*values, **self.attributes)
        if isinstance(result, tuple):
            return tuple(map(tidy, result))
        return None if result is None else tidy(result)

    def _on_tensors(self, values: list[Any]) -> Any:
        wanted = HOST_INPUTS.get(self.op, ())
        for position, slot in enumerate(self.slots):
            on_host = position in wanted and isinstance(values[position], np.ndarray)
            if slot.attribute is not None and not on_host:
                values[position] = getattr(self, slot.attribute)
            elif not on_host:
                values[position] = as_tensor(values[position])
        return self.rule(*values, **self.attributes)


@dataclass(frozen=True)
class Step:
    """One submodule's call; `last` are the names that no later step reads."""

    module: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    last: tuple[str, ...] = ()


class Graph(nn.Module):
    """The nodes in the file's order."""

    def __init__(self, steps: list[Step], inputs: list[str], outputs: tuple[str, ...]) -> None:
        super().__init__()
        self.steps, self.input_names, self.output_names = steps, inputs, outputs

    def forward(self, *inputs: Tensor) -> Any:
        """Outputs in graph order: the tensor if there is one, else a tuple."""
        values: dict[str, Any] = dict(zip(self.input_names, inputs, strict=True))
        for step in self.steps:
            result = getattr(self, step.module)(*(values[name] for name in step.inputs))
            results = result if isinstance(result, tuple) else (result,)
            values.update(zip(step.outputs, results, strict=False))
            for name in step.last:
                values.pop(name, None)
        outputs = tuple(as_tensor(values[name]) for name in self.output_names)
        return outputs if len(outputs) > 1 else outputs[0]


def _named(names: list[str]) -> type[Graph]:
    """Graph whose forward has these parameter names, which torch.export gives to the program."""

    def forward(self: Graph, *inputs: Tensor) -> Any:
        return Graph.forward(self, *inputs)

    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    parameters = [inspect.Parameter(name, kind) for name in ["self", *_unique(names)]]
    forward.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return type("Graph", (Graph,), {"forward": forward})


class _Builder:
    """Walks the nodes once: folds constants, makes the submodules, lists the steps."""

    def __init__(self, graph: GraphProto, opset: int) -> None:
        self.graph, self.opset = graph, opset
        self.constants: dict[str, Tensor] = {}
        self.shared: dict[tuple[str, bool], Tensor] = {}
