"""A program to a Core ML model in memory."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.export import ExportedProgram
from torch.fx import Node

from sdk.apple import DEPLOYMENT, FILE_DTYPE, SYSTEMS, UNITS, file_names
from sdk.compilers.half import bound
from sdk.compilers.kernels import kernel_nodes
from sdk.compilers.mil.frontend import coremltools, hushed
from sdk.compilers.mil.prepare import prepare
from sdk.compilers.program import Program, SourceLine, owner_of, source_of
from sdk.errors import EngineError, InputError, UnsupportedOperatorError
from sdk.signature import Dim
from sdk.target import Target

# Precisions whose weights have scales in groups.
GROUPED = ("int4", "int2")
# What coremltools raises on a program that it cannot convert: it has no errors of its own.
FAILURES = (
    NotImplementedError, ValueError, TypeError, AttributeError, AssertionError, LookupError,
    RuntimeError, ArithmeticError,
)  # fmt: skip


@dataclass(frozen=True)
class Converted:
    """A Core ML model that is not saved yet, and where its operators come from."""

    model: Any
    sources: Mapping[str, SourceLine]
    """First output of an operator -> its source."""


def convert(program: Program, target: Target, *, half: bool) -> Converted:
    """`program` as an `mlprogram`, computing in fp16 if `half`."""
    deployment = deployment_of(target)
    check_borders(program)
    _check_system(program, deployment, GROUPED, f"Weights as {program.precision}")
    _register_kernels(program)
    exported = _prepared(program.exported)
    if half:
        _bound(exported)
    check_states(exported, program, deployment)
    calls = [node for node in exported.graph.nodes if node.op == "call_function"]
    for index, node in enumerate(calls):
        node.meta["debug_handle"] = index
    model = _convert(program, exported, deployment, target, half)
    return Converted(model, dict(_sources(model, calls)))


def _register_kernels(program: Program) -> None:
    specs = {spec.name: spec for _, spec in kernel_nodes(program.exported)}
    if specs:
        with hushed():  # it imports coremltools
            from sdk.compilers.mil.kernels import register

            for spec in specs.values():
                register(spec)


def deployment_of(target: Target) -> str:
    """The oldest system that the file is for: the target's fourth part."""
    name = target.arch or DEPLOYMENT
    if name not in SYSTEMS:
        raise InputError(
            f"The deployment target {name!r} is not known.",
            expected=f"one of {', '.join(SYSTEMS)}",
            got=str(target),
            fix=f"write for example 'coreml:{target.device}:{target.precision}:{DEPLOYMENT}'",
        )
    return name


def check_borders(program: Program) -> None:
    """Raise InputError for inputs and outputs that Core ML has no dtype for."""
    signature = program.signature
    for role, specs in (("input", signature.inputs), ("output", signature.outputs)):
        for spec in specs:
            if spec.dtype not in FILE_DTYPE:
                raise InputError(
                    f"The {role} {spec.name!r} has a dtype that Core ML lacks.",
                    expected=f"one of {', '.join(FILE_DTYPE)}",
                    got=str(spec),
                    fix="convert it in the model, for example with x.float()",
                )


def _check_system(
    program: Program, deployment: str, precisions: Collection[str], what: str
) -> None:
    """Raise InputError for what Core ML only has since iOS18."""
    if program.precision in precisions and SYSTEMS[deployment] < SYSTEMS["iOS18"]:
        raise InputError(
            f"{what} cannot be had on {deployment}.",
            expected="iOS18 or later",
            got=deployment,
            fix="leave the deployment target out, which is iOS18 by default",
        )


def check_states(exported: ExportedProgram, program: Program, deployment: str) -> None:
    """Raise InputError for states that Core ML has not: it has fp16, and zeros to begin with."""
    for name in exported.graph_signature.buffers_to_mutate.values():
        _check_system(program, deployment, (program.precision,), f"The state {name!r}")
        buffer = exported.state_dict.get(name, exported.constants.get(name))
        assert isinstance(buffer, torch.Tensor)
        if not buffer.is_floating_point() or bool(buffer.count_nonzero()):
            raise InputError(
                f"The buffer {name!r}, which the model writes to, cannot be a Core ML state.",
                expected="floats that are zero at first",
                got=f"{buffer.dtype}, {int(buffer.count_nonzero())} values that are not zero",
                fix="make it an input and an output of the model",
            )


def _prepared(exported: ExportedProgram) -> ExportedProgram:
    try:
        with hushed():
            return prepare(exported)
    except FAILURES as error:
        text = f"{type(error).__name__}: {error}"[:500]
        raise EngineError(f"torch could not take the program apart for Core ML: {text}") from error


def _bound(exported: ExportedProgram) -> None:
    """Numbers that are infinite in fp16 become its largest: coremltools would write infinities."""
    largest = torch.finfo(torch.float16).max
    for node in exported.graph.nodes:
        if node.op == "call_function":
            bound(node, largest, largest)


def _convert(
    program: Program, exported: ExportedProgram, deployment: str, target: Target, half: bool
) -> Any:
    ct = coremltools()
    precision = ct.precision.FLOAT16 if half else ct.precision.FLOAT32
    inputs, outputs = _ports(ct, program)
    try:
        with hushed():
            return ct.convert(
                exported,
                convert_to="mlprogram",
                inputs=inputs,
                outputs=outputs,
                minimum_deployment_target=getattr(ct.target, deployment),
                compute_precision=precision,
                compute_units=getattr(ct.ComputeUnit, UNITS[target.device]),
                skip_model_load=True,
            )
    except FAILURES as error:
        raise _conversion_error(error, exported) from error


def _ports(ct: Any, program: Program) -> tuple[list[Any], list[Any]]:
    """coremltools' descriptions of inputs and outputs; one Dim is one range wherever it stands."""
    signature = program.signature
    ranges: dict[str, Any] = {}

    def size(dim: int | Dim) -> Any:
        if isinstance(dim, int):
            return dim
        if dim.name not in ranges:
            ranges[dim.name] = ct.RangeDim(dim.min, dim.max, dim.opt)
        return ranges[dim.name]

    read = file_names(signature.inputs)
    inputs = [
        ct.TensorType(
            name=name,
            shape=tuple(map(size, spec.shape)) or (1,),
            dtype=np.dtype(FILE_DTYPE[spec.dtype]).type,
        )
        for name, spec in zip(read, signature.inputs, strict=True)
    ]
    outputs = [
        ct.TensorType(name=name, dtype=np.dtype(FILE_DTYPE[spec.dtype]).type)
        for name, spec in zip(file_names(signature.outputs, read), signature.outputs, strict=True)
    ]
    return inputs, outputs


def _sources(model: Any, calls: list[Node]) -> Iterator[tuple[str, SourceLine]]:
    """By the handles that coremltools carries through its passes."""
    scope = coremltools("coremltools.converters.mil.mil.scope").ScopeSource.EXIR_DEBUG_HANDLE
    for operation in model._mil_program.functions["main"].operations:
        handles = [h for h in operation.scopes.get(scope, ()) if isinstance(h, int)]
        if handles and operation.outputs:
            yield operation.outputs[0].name, owner_of(calls[handles[-1]])


def _conversion_error(error: BaseException, exported: ExportedProgram) -> Exception:
    """UnsupportedOperatorError with the operator and its place, as far as the failure tells."""
    node = _failed_node(error, exported)
    text = f"{type(error).__name__}: {error}".strip()[:500]
    if node is None:
        return EngineError(f"coremltools could not convert the program: {text}")
    source = source_of(node)
    missing = "Unsupported fx node" in str(error)
    return UnsupportedOperatorError(
        f"The operator {source.operator} has no translation to Core ML."
        if missing
        else f"coremltools could not translate the operator {source.operator}: {text}",
        got=source,
        fix="compile for another engine, or write the operator with ordinary ones",
    )


def _failed_node(error: BaseException, exported: ExportedProgram) -> Node | None:
    """The node that coremltools was at: named in the message, or held by a frame of the failure."""
    names = {node.name: node for node in exported.graph.nodes}
    match = re.match(r"Unsupported fx node (\w+)", str(error))
    if match is not None:
        return names.get(match[1])
    trace = error.__traceback__
    found = None
    while trace is not None:
        if trace.tb_frame.f_code.co_name == "convert_single_node":
            found = names.get(trace.tb_frame.f_locals["node"].name)
        trace = trace.tb_next
    return found
