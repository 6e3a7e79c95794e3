"""Plugin kernels as TensorRT's quick plugins: the registration follows from the `KernelSpec`.

TensorRT wants the sizes of outputs as expressions of those of the inputs. They come from the
kernel's plain function, run on tensors without data whose sizes are symbols. What runs is the C
function of the kernel's `cuda.cu`.

This has not run: it is written against TensorRT's documentation, and the tests drive it with a
stand-in. Compiles for TensorRT therefore take a kernel apart; a plugin is for those who build
networks by hand, after `register`.
"""

from __future__ import annotations

import ctypes
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import sympy  # type: ignore[import-untyped]
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import (
    DimDynamic,
    ShapeEnv,
    StatelessSymbolicContext,
)
from torch.utils._sympy.functions import FloorDiv

from sdk.errors import EngineError, InputError
from sdk.extras import require
from sdk.kernels.interface import DTYPES, CTensor, values_of
from sdk.kernels.spec import KernelSpec

TYPES = {"int": int, "float": float, "bool": bool}
# TensorRT's name of a dtype -> ours.
NAMES = {"FLOAT": "float32", "HALF": "float16", "BF16": "bfloat16", "INT8": "int8",
         "UINT8": "uint8", "INT32": "int32", "INT64": "int64", "BOOL": "bool"}  # fmt: skip
OF_NAME = {ours: theirs for theirs, ours in NAMES.items()}
Size = Callable[[Sequence[Sequence[Any]]], Any]


@dataclass(frozen=True)
class Rule:
    """Of one output: its dtype, and each of its sizes from the sizes of all inputs."""

    dtype: str
    sizes: tuple[Size, ...]


def register(spec: KernelSpec, code: ctypes.CDLL) -> None:
    """Make `edge::<name>` a plugin of TensorRT, run by the functions of `code`."""
    plugins = require("tensorrt.plugin", purpose="A plugin of TensorRT")
    trt = require("tensorrt", purpose="A plugin of TensorRT")
    plugins.register(spec.name)(_description(spec, plugins, trt))
    plugins.impl(spec.name)(_implementation(spec, code))


def _description(spec: KernelSpec, plugins: Any, trt: Any) -> Callable[..., Any]:
    def describe(*given: Any) -> Any:
        tensors, attributes = given[: len(spec.tensors)], given[len(spec.tensors) :]
        dtypes = [NAMES[tensor.dtype.name] for tensor in tensors]
        ranks = [len(tensor.shape_expr) for tensor in tensors]
        rules = rules_of(spec, dtypes, ranks, dict(zip(_names(spec), attributes, strict=True)))
        sizes = [list(tensor.shape_expr) for tensor in tensors]
        made = tuple(
            plugins.from_shape_expr(
                tuple(size(sizes) for size in rule.sizes), getattr(trt, OF_NAME[rule.dtype].lower())
            )
            for rule in rules
        )
        return made[0] if spec.outputs == 1 else made

    one = plugins.TensorDesc
    returned = one if spec.outputs == 1 else tuple[(one,) * spec.outputs]  # type: ignore[misc]
    describe.__signature__ = _signature(spec, one, (), returned)  # type: ignore[attr-defined]
    return describe


def _implementation(spec: KernelSpec, code: ctypes.CDLL) -> Callable[..., None]:
    def run(*given: Any) -> None:
        *arguments, outputs, stream = given
        tensors = arguments[: len(spec.tensors)]
        kinds = [parameter.kind == "float" for parameter in spec.attributes]
        values = values_of(kinds, arguments[len(spec.tensors) :])
        call_cuda(spec, code, tensors, values, outputs, stream)

    any_type = inspect.Parameter.empty
    run.__signature__ = _signature(spec, any_type, ("outputs", "stream"), any_type)  # type: ignore[attr-defined]
    return run


def _signature(spec: KernelSpec, tensor: Any, more: Sequence[str], returned: Any) -> Any:
    """What TensorRT reads: names and types of tensors and attributes."""
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    given = [inspect.Parameter(p.name, kind, annotation=tensor) for p in spec.tensors]
    given += [inspect.Parameter(p.name, kind, annotation=TYPES[p.kind]) for p in spec.attributes]
    given += [inspect.Parameter(name, kind) for name in more]
    return inspect.Signature(given, return_annotation=returned)


def call_cuda(
    spec: KernelSpec,
    code: ctypes.CDLL,
    tensors: Sequence[Any],
    values: Any,
    outputs: Sequence[Any],
    stream: int,
) -> None:
    """Run the kernel's CUDA code on tensors of the device, in their stream.

    They have `data_ptr`, `shape`, `strides` and `dtype` as TensorRT's have. The workspace is the
    stream's: taken before and given back after what runs in it.
    """
    inputs = (CTensor * len(tensors))(*map(_described, tensors))
    results = (CTensor * len(outputs))(*map(_described, outputs))
    size = _workspace_size(spec, code, inputs, values)
    with _Workspace(size, stream) as workspace:
        function = getattr(code, f"{spec.short}_cuda")
        function.restype = ctypes.c_char_p
        message = function(
            inputs, len(tensors), values, results, ctypes.c_void_p(workspace),
            ctypes.c_void_p(stream),
        )  # fmt: skip
    if message is not None:
        raise EngineError(f"The kernel {spec.name} refuses.", got=message.decode())


def _workspace_size(spec: KernelSpec, code: ctypes.CDLL, inputs: Any, values: Any) -> int:
    asked = getattr(code, f"{spec.short}_cuda_workspace", None)
    if asked is None:
        return 0
    asked.restype = ctypes.c_size_t
    return int(asked(inputs, values))


class _Workspace:
    """Bytes of the device's memory, in the order of a stream."""

    def __init__(self, size: int, stream: int) -> None:
        self._size, self._stream, self._pointer = size, stream, 0

    def __enter__(self) -> int | None:
        if self._size:
            status, self._pointer = _runtime().cudaMallocAsync(self._size, self._stream)
            _check(status)
        return self._pointer or None

    def __exit__(self, *_: object) -> None:
        if self._size:
            _check(_runtime().cudaFreeAsync(self._pointer, self._stream)[0])


def _runtime() -> Any:
    return require("cuda.bindings.runtime", purpose="A plugin of TensorRT")


def _check(status: Any) -> None:
    if int(status):
        raise EngineError("CUDA has no memory for a kernel's workspace.", got=str(status))


def _described(tensor: Any) -> CTensor:
    dtype = NAMES[tensor.dtype.name]
    found = CTensor(data=tensor.data_ptr, rank=len(tensor.shape), dtype=DTYPES.index(dtype))
    found.shape[: found.rank] = list(tensor.shape)
    found.strides[: found.rank] = list(tensor.strides)
    return found


def _names(spec: KernelSpec) -> list[str]:
    return [p.name for p in spec.attributes]


def rules_of(
    spec: KernelSpec,
    dtypes: Sequence[str],
    ranks: Sequence[int],
    attributes: Mapping[str, int | float | bool],
) -> list[Rule]:
    """The outputs for inputs of these dtypes and numbers of axes, whatever their sizes.

    One sample of the kernel's gives the sizes to begin with: they must belong together. A function
    that loops over a size fixes it, so that each rule is held to all samples.
    """
    samples = _samples(spec, dtypes, ranks, attributes)
    first = min(samples, key=lambda sample: sum(list(sizes).count(1) for sizes in sample.inputs))
    environment = ShapeEnv()
    mode = FakeTensorMode(shape_env=environment, allow_non_fake_inputs=True)
    fake = [
        mode.from_tensor(
            tensor,
            symbolic_context=StatelessSymbolicContext([_freedom(size) for size in tensor.shape]),
        )
        for tensor in first.tensors
    ]
    with mode:
        made = _outputs(spec.reference(*fake, **{**first.attributes, **attributes}))
    places = _places(fake, environment)
    rules = []
    for i, output in enumerate(made):
        symbolic = (_size(size, places, environment) for size in output.shape)
        sizes = tuple(_held(spec, size, samples, i, axis) for axis, size in enumerate(symbolic))
        rules.append(Rule(str(output.dtype).removeprefix("torch."), sizes))
    return rules


@dataclass(frozen=True)
class _Sample:
    """A case of a kernel: its tensors, and sizes of inputs and outputs."""

    tensors: tuple[torch.Tensor, ...]
    attributes: Mapping[str, int | float | bool]
    inputs: tuple[torch.Size, ...]
    outputs: tuple[torch.Size, ...]


def _samples(
    spec: KernelSpec,
    dtypes: Sequence[str],
    ranks: Sequence[int],
    attributes: Mapping[str, int | float | bool],
) -> list[_Sample]:
    """The cases of these inputs that the attributes fit."""
    wanted = list(zip(dtypes, ranks, strict=True))
    found = []
    for case in spec.sample(np.random.default_rng(0)):
        tensors = tuple(t for t in case.tensors if t is not None)
        if wanted != [(str(t.dtype)[6:], t.ndim) for t in tensors] or not all(map(_some, tensors)):
            continue
        given = {**case.attributes, **attributes}
        try:
            made = _outputs(spec.reference(*(t.to("meta") for t in tensors), **given))
        except (RuntimeError, InputError):  # other attributes than the sample's
            continue
        shapes = tuple(t.shape for t in tensors), tuple(t.shape for t in made)
        found.append(_Sample(tensors, case.attributes, *shapes))
    if not found or len(wanted) < len(spec.tensors):
        raise InputError(
            f"{spec.name} has no sample of these inputs.",
            expected="dtypes and numbers of axes as in one of its samples, and every tensor given",
            got=wanted,
        )
    return found


def _some(tensor: torch.Tensor) -> bool:
    return tensor.numel() > 0


def _outputs(made: Any) -> tuple[torch.Tensor, ...]:
    return made if isinstance(made, tuple) else (made,)


def _freedom(size: int) -> DimDynamic:
    """An axis that is 1 in a sample where others are more, is always 1."""
    return DimDynamic.STATIC if size == 1 else DimDynamic.DYNAMIC


def _held(spec: KernelSpec, size: Size, samples: Sequence[_Sample], output: int, axis: int) -> Size:
    """The rule for a size, if all samples keep it; else the axis that has it in all of them."""
    wanted = [sample.outputs[output][axis] for sample in samples]
    if [size(sample.inputs) for sample in samples] == wanted:
        return size
    for i, shape in enumerate(samples[0].inputs):
        for place in range(len(shape)):
            if [sample.inputs[i][place] for sample in samples] == wanted:
                return lambda sizes, i=i, place=place: sizes[i][place]  # type: ignore[misc]
    raise InputError(
        f"The sizes of the outputs of {spec.name} follow from no size of its inputs.",
        expected="sums, products and quotients of sizes",
        got=f"axis {axis} of output {output}: {wanted}",
    )


def _places(
    fake: Sequence[torch.Tensor], environment: ShapeEnv
) -> dict[sympy.Symbol, tuple[int, int]]:
    """Symbol -> an input and an axis that have it for a size."""
    found: dict[sympy.Symbol, tuple[int, int]] = {}
    for i, tensor in enumerate(fake):
        for axis, size in enumerate(tensor.shape):
            expression = environment.simplify(sympy.sympify(_expression(size)))
            if isinstance(expression, sympy.Symbol):
                found.setdefault(expression, (i, axis))
    return found


def _expression(size: int | torch.SymInt) -> Any:
    return size.node.expr if isinstance(size, torch.SymInt) else size


def _size(
    size: int | torch.SymInt, places: Mapping[sympy.Symbol, tuple[int, int]], environment: ShapeEnv
) -> Size:
    expression = environment.simplify(sympy.sympify(_expression(size)))

    def value(part: Any, sizes: Sequence[Sequence[Any]]) -> Any:
        if isinstance(part, sympy.Integer):
            return int(part)
        if part in places:
            i, axis = places[part]
            return sizes[i][axis]
        operands = [value(argument, sizes) for argument in part.args]
        if isinstance(part, sympy.Add):
            return _folded(operands, lambda a, b: a + b)
        if isinstance(part, sympy.Mul):
            return _folded(operands, lambda a, b: a * b)
        if isinstance(part, FloorDiv):
            return operands[0] // operands[1]
        raise InputError("A size is no expression that TensorRT takes.", got=str(part))

    return lambda sizes: value(expression, sizes)


def _folded(operands: Sequence[Any], combine: Callable[[Any, Any], Any]) -> Any:
    """Numbers last: TensorRT's expressions take them on their right."""
    ordered = sorted(operands, key=lambda operand: isinstance(operand, int))
    total = ordered[0]
    for operand in ordered[1:]:
        total = combine(total, operand)
    return total
