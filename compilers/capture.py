"""An `nn.Module`, an `ExportedProgram` or an ONNX file to a `Program`."""

from __future__ import annotations

import contextlib
import copy
import inspect
import io
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from sdk.compilers.dims import (
    Dynamic,
    Proposed,
    check_dynamic,
    signature_of,
    torch_shapes,
    widen,
    without_fixed,
)
from sdk.compilers.program import Feed, Program, _is_library
from sdk.compilers.states import Buffers
from sdk.errors import CaptureError, InputError
from sdk.extras import quiet
from sdk.signature import DTYPES, Array

Model = nn.Module | ExportedProgram | Program | str | Path
Inputs = Mapping[str, Any] | Sequence[Any] | torch.Tensor | Array
# What torch.export, and the model's own forward under it, raise when capture fails.
CAPTURE_FAILURES = (
    RuntimeError, TypeError, ValueError, AttributeError, NotImplementedError, AssertionError,
    LookupError, torch._dynamo.exc.TorchDynamoException,
)  # fmt: skip


class Named(nn.Module):
    """A module whose forward takes tensors by position, under names of its own.

    `source` is what the manifest says was captured.
    """

    def __init__(self, input_names: tuple[str, ...], source: str) -> None:
        super().__init__()
        self.input_names, self.source = input_names, source


def class_name(value: object) -> str:
    """`package.module.Class` of an object."""
    return f"{type(value).__module__}.{type(value).__qualname__}"


def capture(model: Model, inputs: Inputs | None, dynamic: Dynamic | None = None) -> Program:
    """Capture `model` with example `inputs`; `dynamic` maps input -> axis -> Dim.

    Example inputs are a tensor, a sequence of tensors in forward's order or a mapping by name,
    NumPy or torch. A module is captured in eval mode and left in the mode that it was in. A
    `Program` was captured before: its fp32 form is taken.
    """
    if isinstance(model, Program):
        return model.base or model
    if isinstance(model, (str, Path)):
        return _capture_onnx(Path(model), inputs, dynamic or {})
    if isinstance(model, ExportedProgram):
        if dynamic:
            raise InputError(
                "An ExportedProgram has its dynamic dimensions already.",
                got=f"dynamic={dict(dynamic)}",
                fix="leave dynamic out, or pass the nn.Module",
            )
        return _from_exported(model)
    if not isinstance(model, nn.Module):
        raise InputError(
            "The model is of a type that cannot be compiled.",
            expected="an nn.Module, an ExportedProgram or the path of an .onnx file",
            got=type(model).__name__,
        )
    return _capture_module(model, inputs, dynamic or {}, _parameter_names(model), None)


def example_feed(model: Model, inputs: Inputs | None) -> dict[str, Array] | None:
    """The caller's example inputs as named NumPy arrays, in the model's order."""
    if inputs is None:
        return None
    names = _input_names(model)
    if isinstance(inputs, Mapping):
        unknown = [name for name in inputs if name not in names]
        if unknown:
            raise InputError(f"The model has no input {unknown[0]!r}.", expected=names, got=unknown)
        return {name: _array(name, inputs[name]) for name in names if name in inputs}
    values = list(inputs) if isinstance(inputs, (list, tuple)) else [inputs]
    if len(values) > len(names):
        raise InputError("Too many example inputs.", expected=names, got=f"{len(values)} inputs")
    return {name: _array(name, value) for name, value in zip(names, values, strict=False)}


def _input_names(model: Model) -> list[str]:
    if isinstance(model, Program):
        return [spec.name for spec in model.signature.inputs]
    if isinstance(model, ExportedProgram):
        return [spec.name for spec in _from_exported(model).signature.inputs]
    if isinstance(model, nn.Module):
        return _parameter_names(model)
    from sdk.compilers import onnx_import  # needs onnx, which the other inputs do not

    return [name for name, _, _ in onnx_import.load(Path(model)).inputs]


def _parameter_names(module: nn.Module) -> list[str]:
    if isinstance(module, Named):
        return list(module.input_names)
    parameters = inspect.signature(module.forward).parameters.values()
    names = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    return names or [f"input_{index}" for index in range(16)]


def _array(name: str, value: Any) -> Array:
    array = value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else value
    if not isinstance(array, np.ndarray) or str(array.dtype) not in DTYPES:
        raise InputError(
            f"The example input {name!r} is not a usable tensor.",
            expected=f"a torch tensor or NumPy array of {', '.join(DTYPES)}",
            got=getattr(array, "dtype", type(value).__name__),
        )
    return array


def _capture_module(
    module: nn.Module,
    inputs: Inputs | None,
    dynamic: Dynamic,
    names: list[str],
    output_names: list[str] | None,
) -> Program:
    feed = example_feed(module, inputs)
    if not feed:
        raise InputError("Compiling a module needs example inputs.", fix="pass inputs=tensor")
    check_dynamic(feed, dynamic)
    with _evaluating(module):
        with Buffers(module).kept():
            outputs = _try_run(module, feed, names)
        plain = _contiguous(module)
        exported = _export(plain, widen(feed, dynamic), dynamic, names)
        if isinstance(dynamic, Proposed):
            varying = without_fixed(exported, list(feed), dynamic)
            if varying != dynamic:  # the graph still has symbols for what the model fixed
                dynamic = varying
                exported = _export(plain, widen(feed, dynamic), dynamic, names)
    output_names = output_names or [name for name, _ in outputs]
    signature = signature_of(exported, list(feed), dynamic, output_names)
    return Program(
        exported=exported,
        signature=signature,
        precision="fp32",
        reference=_eager(module, names, output_names),
        source=module.source if isinstance(module, Named) else class_name(module),
    )


def _contiguous(module: nn.Module) -> nn.Module:
    """A copy in plain memory layout, if the module is not in it.

    A channels-last module exports with shape arithmetic around its reshapes, and OpenVINO 2026.4
    computed wrong values from the int8 form of such a graph.
    """
    tensors = (*module.parameters(), *module.buffers())
    if all(tensor.is_contiguous() for tensor in tensors if tensor.dim() in (4, 5)):
        return module
    return copy.deepcopy(module).to(memory_format=torch.contiguous_format)  # type: ignore[call-overload, no-any-return]


def _export(module: nn.Module, feed: Feed, dynamic: Dynamic, names: list[str]) -> ExportedProgram:
    shapes = torch_shapes(list(feed), dynamic)
    args, kwargs = _call_arguments(feed, names)
    try:
        # On failure it prints its half-made graph; the error names the user's line instead.
        with torch.no_grad(), quiet("torch.export"), contextlib.redirect_stderr(io.StringIO()):
            return torch.export.export(
                module, args, kwargs, dynamic_shapes=_as_call(shapes, args, feed, module)
            )
    except CAPTURE_FAILURES as error:
        what = "torch.export could not capture the model."
        expected = "a forward whose control flow does not depend on tensor values"
        raise _capture_error(what, expected, error) from error


def _as_call(
    shapes: Mapping[str, Any], args: tuple[Any, ...], feed: Feed, module: nn.Module
) -> Any:
    """torch.export wants shapes by parameter; `*args` modules have one name for all."""
    many = variadic(module)
    if many and len(args) == len(feed):
        return {many[0]: tuple(shapes[name] for name in feed)}
    return dict(shapes)


def variadic(module: nn.Module) -> list[str]:
    """The name of forward's `*tensors`, if it has some."""
    parameters = inspect.signature(module.forward).parameters.values()
    return [p.name for p in parameters if p.kind is p.VAR_POSITIONAL]


def _call_arguments(feed: Feed, names: list[str]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Leading inputs go by position, inputs behind a gap by keyword."""
    tensors = {name: torch.from_numpy(np.asarray(x, order="C")) for name, x in feed.items()}
    leading = []
    for name in names:
        if name not in tensors:
            break
        leading.append(tensors.pop(name))
    return tuple(leading), tensors


def _eager(
    module: nn.Module, names: list[str], output_names: list[str]
) -> Callable[[Feed], dict[str, Array]]:
    """The module itself, in eval mode, as a function of a feed."""
    buffers = Buffers(module)

    def reference(feed: Feed) -> dict[str, Array]:
        with _evaluating(module), buffers.kept():
            values = [value for _, value in _run(module, feed, names)]
        return dict(zip(output_names, values, strict=True))

    return reference


@contextlib.contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """Eval mode in the block; behind it each part is in the mode that it was in."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


def _try_run(module: nn.Module, feed: Feed, names: list[str]) -> list[tuple[str, Array]]:
    """The outputs for the example inputs; torch says more of a wrong shape than torch.export."""
    try:
        return _run(module, feed, names)
    except CAPTURE_FAILURES as error:
        shapes = ", ".join(f"{name}: {x.dtype}{list(x.shape)}" for name, x in feed.items())
        what = f"The model does not run on its example inputs ({shapes})."
        raise _capture_error(what, "inputs that its forward takes", error) from error


def _run(module: nn.Module, feed: Feed, names: list[str]) -> list[tuple[str, Array]]:
    args, kwargs = _call_arguments(feed, names)
    with torch.no_grad():
        result = module(*args, **kwargs)
    return name_outputs(result)


def name_outputs(result: Any) -> list[tuple[str, Array]]:
    """Name the tensors of a result: keys of mappings and records, `output` or `output_<i>`."""
    leaves, _ = pytree.tree_flatten_with_path(result)
    tensors = [(path, leaf) for path, leaf in leaves if isinstance(leaf, torch.Tensor)]
    if len(tensors) != len(leaves) or not tensors:
        raise CaptureError(
            "The model's outputs are not all tensors.",
            got=[type(leaf).__name__ for _, leaf in leaves],
            fix="wrap the model in a module that returns tensors only",
        )
    return [
        # a copy: the tensor may be a buffer that the next run writes to
        (_output_name(path, index, len(tensors)), tensor.detach().cpu().numpy().copy())
        for index, (path, tensor) in enumerate(tensors)
    ]


def _output_name(path: tuple[Any, ...], index: int, count: int) -> str:
    keys = [getattr(key, "key", getattr(key, "name", getattr(key, "idx", ""))) for key in path]
    if any(isinstance(key, str) and key for key in keys):
        return "_".join(str(key) for key in keys)
    return "output" if count == 1 else f"output_{index}"


def _from_exported(exported: ExportedProgram) -> Program:
    names = list(exported.graph_signature.user_inputs)
    module = exported.module(check_guards=False)
    fake = [
        node.meta["val"]
        for node in exported.graph.nodes
        if node.op == "output"
        for node in node.args[0]
    ]
    tree = pytree.tree_unflatten(fake, exported.call_spec.out_spec)
    leaves, _ = pytree.tree_flatten_with_path(tree)
    output_names = [_output_name(path, i, len(leaves)) for i, (path, _) in enumerate(leaves)]
    return Program(
        exported=exported,
        signature=signature_of(exported, names, {}, output_names),
        precision="fp32",
        reference=eager_exported(module, names, output_names),
        source="torch.export.ExportedProgram",
    )


def eager_exported(
    module: nn.Module, names: list[str], output_names: list[str]
) -> Callable[[Feed], dict[str, Array]]:
    """An exported module, which takes all its inputs by position, as a function of a feed."""
    buffers = Buffers(module)

    def reference(feed: Feed) -> dict[str, Array]:
        tensors = [torch.from_numpy(np.asarray(feed[name], order="C")) for name in names]
        with torch.no_grad(), buffers.kept():
            values = [value for _, value in name_outputs(module(*tensors))]
        return dict(zip(output_names, values, strict=True))

    return reference


def _capture_onnx(path: Path, inputs: Inputs | None, dynamic: Dynamic) -> Program:
    from sdk.compilers import onnx_import, onnx_reference  # need onnx, which modules do not

    imported = onnx_import.load(path)
    names = [name for name, _, _ in imported.inputs]
    if inputs is None:
        raise InputError("Compiling an ONNX file needs example inputs.", fix="pass inputs={...}")
    feed = example_feed(path, inputs)
    program = _capture_module(imported.module, feed, dynamic, names, list(imported.outputs))
    onnx_reference.check_import(path, program, feed or {})
    return program


def _capture_error(what: str, expected: str, error: BaseException) -> CaptureError:
    """Name the user's line on which it stopped, and what to change."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not _is_library(f.filename)]
    user = [f for f in frames if "/sdk/" not in f.filename]
    message = str(error).strip().splitlines()
    return CaptureError(
        what,
        expected=expected,
        got=f"{type(error).__name__}: {message[0] if message else ''}",
        fix=f"change {user[-1].filename}:{user[-1].lineno}: {user[-1].line}" if user else None,
    )
