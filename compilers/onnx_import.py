"""ONNX file -> torch module that torch.export captures with a dynamic batch.

A foreign ONNX file then takes the same path as a PyTorch model: exported program, quantize, lower.
Each node becomes a submodule that is named after it, so that an exported program's module stack
names the ONNX node; constants become parameters (weights) or buffers of the node that reads them.
The operators are in onnx_ops/; how shapes stay dynamic is told in onnx_ops/values.py. The file is
not trusted: it is parsed and checked before anything is computed, and no tensor is read from
outside its folder.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

from sdk.compilers.onnx_ops import OPERATORS
from sdk.compilers.onnx_ops.build import build, title
from sdk.compilers.onnx_ops.values import dtype_of
from sdk.errors import InputError, UnsupportedOperatorError
from sdk.extras import require

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto

__all__ = ["OPERATORS", "ImportedModel", "load"]

OLDEST_OPSET, NEWEST_OPSET = 7, 24
CONTROL_FLOW = ("If", "Loop", "Scan", "SequenceMap")
DOMAINS = ("", "ai.onnx")


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
    module = build(model.graph, opset, [name for name, _, _ in inputs], outputs)
    return ImportedModel(module.eval(), inputs, outputs)


def _parsed(path: Path) -> ModelProto:
    onnx = require("onnx", purpose="Reading an ONNX file")
    decode_error = require("google.protobuf.message", purpose="Reading an ONNX file").DecodeError

    try:
        model: ModelProto = onnx.load_model(path, load_external_data=False)
    except OSError as error:
        raise InputError(f"Cannot read {path}: {error.strerror}.") from error
    except decode_error as error:
        raise InputError(
            f"{path} is not an ONNX file, or is truncated.", fix="download or export it again"
        ) from error
    if not model.graph.output or not model.opset_import:
        raise InputError(
            f"{path} holds no ONNX graph.", expected="a model with outputs and an opset"
        )
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
    lines = [
        f"{title(node)} (domain {node.domain or 'ai.onnx'}, opset {opset})" for node in unknown
    ]
    names = sorted({node.op_type for node in unknown})
    near = {name: difflib.get_close_matches(name, OPERATORS, 2) for name in names}
    hints = [
        f"{name}: the importer has {', '.join(found)}" for name, found in near.items() if found
    ]
    if set(names) & set(CONTROL_FLOW):
        hints.append("control flow (If, Loop, Scan) is not covered: fold it with onnxsim")
    raise UnsupportedOperatorError(
        f"The ONNX file has operators that the importer lacks: {', '.join(names)}.",
        got="; ".join(lines[:20]) + (f"; and {len(lines) - 20} more" if len(lines) > 20 else ""),
        fix="; ".join(hints) or "export the model with standard operators",
    )


def _known(node: NodeProto) -> bool:
    return node.domain in DOMAINS and node.op_type in OPERATORS


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
        raise UnsupportedOperatorError(
            "The ONNX file has sparse initializers.", fix="store them dense"
        )
    try:
        checker.check_model(model)
    except (checker.ValidationError, ValueError) as error:
        raise InputError("The ONNX file breaks the ONNX specification.", got=str(error)) from error


def _true_inputs(graph: GraphProto) -> list[ValueInfoProto]:
    """Inputs that the caller gives; before IR 4 initializers were listed among them."""
    stored = {tensor.name for tensor in graph.initializer}
    return [value for value in graph.input if value.name not in stored]


def _described(value: ValueInfoProto) -> tuple[str, str, tuple[int | str, ...]]:
    if not value.type.HasField("tensor_type") or not value.type.tensor_type.HasField("shape"):
        raise UnsupportedOperatorError(
            f"Input {value.name!r} is not a tensor of known rank.",
            expected="a tensor with a shape",
            fix="export the model with shapes",
        )
    dtype = dtype_of(value.type.tensor_type.elem_type, value.name)
    dims = enumerate(value.type.tensor_type.shape.dim)
    sizes = (
        d.dim_value if d.HasField("dim_value") else d.dim_param or f"{value.name}_{axis}"
        for axis, d in dims
    )
    return value.name, str(dtype).removeprefix("torch."), tuple(sizes)
