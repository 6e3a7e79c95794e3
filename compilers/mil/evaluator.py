"""A saved Core ML model, evaluated operator by operator in torch on any machine.

It reads the `.mlpackage` as it lies on disk: compressed weights, states, flexible shapes, control
flow. Numbers: every operator computes in float32 and its result is rounded to the type that the
file declares, so that fp16 has fp16's range and steps between operators and no rounding within
them. Core ML's own kernels also accumulate wider than fp16, though not all of them and not in one
order: agreement is to rounding, not to the bit.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sdk.compilers.mil.frontend import coremltools, hushed
from sdk.compilers.mil.operators import OPERATORS
from sdk.compilers.mil.operators.arguments import Operator
from sdk.errors import CorruptArtifactError, EngineError

DTYPE = {
    "fp16": torch.float16, "fp32": torch.float32, "bool": torch.bool, "int8": torch.int8,
    "uint8": torch.uint8, "int16": torch.int16, "uint16": torch.uint16, "int32": torch.int32,
    "uint32": torch.uint32, "int64": torch.int64,
}  # fmt: skip
# What torch raises on arguments that an operator cannot take.
FAILURES = (RuntimeError, TypeError, ValueError, LookupError, ArithmeticError, AssertionError,
            NotImplementedError)  # fmt: skip
CONTROL = ("cond", "while_loop")

Environment = dict[str, Any]


@dataclass(frozen=True)
class Result:
    """What the file declares of a value: its dtype (MIL's name) and sizes; None where flexible."""

    name: str
    dtype: str
    shape: tuple[int | None, ...]


@dataclass(frozen=True)
class Step:
    """One operator: its function, and the names of the values that it reads and makes."""

    kind: str
    function: Operator | None
    reads: Mapping[str, str | tuple[str, ...] | None]
    results: tuple[Result, ...]
    blocks: tuple[Block, ...] = ()

    @property
    def name(self) -> str:
        """That of its first result."""
        return self.results[0].name if self.results else self.kind


@dataclass(frozen=True)
class Block:
    """Operators in order, and the names of what goes in and comes out."""

    inputs: tuple[str, ...]
    steps: tuple[Step, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class Graph:
    """One function of a saved model, ready to be evaluated."""

    block: Block
    constants: Mapping[str, Any]
    inputs: Mapping[str, Result]
    states: Mapping[str, Result]

    def new_states(self) -> dict[str, Tensor]:
        """States as they begin: zeros."""
        return {
            name: torch.zeros([size or 1 for size in state.shape])
            for name, state in self.states.items()
        }

    def evaluate(self, feed: Mapping[str, Tensor], states: dict[str, Tensor]) -> list[Tensor]:
        """The outputs in order, floats as float32; `states` are updated in place."""
        env: Environment = dict(self.constants)
        for name, result in self.inputs.items():
            env[name] = _rounded(feed[name], result)
        with torch.inference_mode():
            return _run(self.block, env, states)


@dataclass
class _Reader:
    """Collects constants while the operators of a loaded function are read."""

    constants: dict[str, Any] = field(default_factory=dict)

    def block(self, block: Any) -> Block:
        steps = tuple(self._steps(block))
        inputs = getattr(block, "_block_inputs", ())  # a function keeps its own in a mapping
        return Block(
            tuple(var.name for var in inputs), steps, tuple(var.name for var in block.outputs)
        )

    def _steps(self, block: Any) -> Iterator[Step]:
        for operation in block.operations:
            kind = operation.op_type
            if kind == "const":
                self._keep(operation.outputs[0], operation.outputs[0].val)
            elif kind.startswith("constexpr_"):
                self._unpack(operation)
            else:
                yield self._step(operation)

    def _unpack(self, operation: Any) -> None:
        """A compressed constant; coremltools itself unpacks it."""
        if operation.op_type == "constexpr_lut_to_dense" and operation.lut.val is None:
            # it does not look through a palette that is compressed itself
            palette, axis = self.constants[operation.lut.name].numpy(), operation.vector_axis
            axis = None if axis is None else axis.val
            values = operation.decompress(operation.indices.val, palette, axis)
        else:
            values = operation.materialized_val_inference()
        several = values if isinstance(values, (tuple, list)) else (values,)
        for var, value in zip(operation.outputs, several, strict=True):
            self._keep(var, value)

    def _keep(self, var: Any, value: Any) -> None:
        self.constants[var.name] = _constant(value)

    def _step(self, operation: Any) -> Step:
        kind = operation.op_type
        blocks = tuple(self.block(inner) for inner in operation.blocks)
        if kind not in OPERATORS and kind not in CONTROL and not kind.endswith("_state"):
            raise EngineError(
                f"The evaluator of Core ML files does not know the operator {kind!r}.",
                got=f"the value {operation.outputs[0].name!r}",
                fix="check the artifact on macOS, or write the operator with ordinary ones",
            )
        reads = {
            name: _names(value)
            for name, value in operation.inputs.items()
            if not name.startswith("_")
        }
        for name, value in self._defaults(operation, reads):
            key = f"{operation.outputs[0].name}:{name}"
            self.constants[key] = _constant(value)
            reads[name] = None if value is None else key
        return Step(
            kind, OPERATORS.get(kind), reads, tuple(map(_result, operation.outputs)), blocks
        )

    @staticmethod
    def _defaults(operation: Any, reads: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
        """What the file leaves out: the operator's default, or nothing."""
        defaults = dict(operation.default_inputs().items())
        for name in operation.input_spec.input_types:
            if reads.get(name) is None and not name.startswith("_"):
                yield name, defaults.get(name)


def read_package(package: Path, function: str = "main") -> Graph:
    """One function of a `.mlpackage`; EngineError names an operator that is not known."""
    ct = coremltools()
    loader = coremltools("coremltools.converters.mil.frontend.milproto.load")
    try:
        with hushed():
            model = ct.models.MLModel(str(package), skip_model_load=True)
            spec = model.get_spec()
            program = loader.load(spec, spec.specificationVersion, model.weights_dir)
    except (*FAILURES, OSError, AttributeError) as error:
        raise CorruptArtifactError(f"{package.name} cannot be read.", got=error) from error
    found = program.functions[function]
    reader = _Reader()
    block = reader.block(found)
    states: dict[str, Result] = {}
    inputs: dict[str, Result] = {}
    for name, var in found.inputs.items():
        (states if _is_state(var) else inputs)[name] = _result(var)
    return Graph(block, reader.constants, inputs, states)


def _is_state(var: Any) -> bool:
    return hasattr(var.sym_type, "wrapped_type")


def _names(value: Any) -> str | tuple[str, ...] | None:
    if isinstance(value, (tuple, list)):
        return tuple(var.name for var in value)
    return None if value is None else str(value.name)


def _result(var: Any) -> Result:
    types = coremltools("coremltools.converters.mil.mil").types
    kind = var.sym_type.wrapped_type() if _is_state(var) else var.sym_type
    primitive = kind.get_primitive() if types.is_tensor(kind) else kind
    sizes = kind.get_shape() if types.is_tensor(kind) else ()
    shape = tuple(int(s) if isinstance(s, (int, np.integer)) else None for s in sizes)
    return Result(var.name, types.builtin_to_string(primitive), shape)


def _constant(value: Any) -> Any:
    """Numbers as tensors, half precision widened; text and nothing as they are."""
    if value is None or isinstance(value, str):
        return value
    array = np.asarray(value)
    if array.dtype.kind in "US":
        return str(array)
    if array.dtype == np.uint16 or array.dtype == np.uint32:
        array = array.astype(np.int64)
    tensor = torch.from_numpy(np.ascontiguousarray(array).reshape(array.shape).copy())
    return tensor.float() if tensor.is_floating_point() else tensor


def _run(block: Block, env: Environment, states: dict[str, Tensor]) -> list[Tensor]:
    for step in block.steps:
        try:
            values = _apply(step, env, states)
        except FAILURES as error:
            raise EngineError(
                f"The evaluator failed at {step.name!r} ({step.kind}): {error}"
            ) from error
        for result, value in zip(step.results, values, strict=True):
            env[result.name] = _checked(step, result, value)
    return [env[name] for name in block.outputs]


def _apply(step: Step, env: Environment, states: dict[str, Tensor]) -> Sequence[Tensor]:
    if step.kind == "cond":
        taken = step.blocks[0] if bool(env[str(step.reads["pred"])]) else step.blocks[1]
        return _run(taken, env, states)
    if step.kind == "while_loop":
        return _loop(step, env, states)
    if step.kind == "read_state":
        return (states[str(step.reads["input"])].clone(),)
    if step.kind == "coreml_update_state":
        name = str(step.reads["state"])
        states[name] = env[str(step.reads["value"])].clone()
        return (states[name].clone(),)
    assert step.function is not None
    values = step.function(**{key: _value(names, env) for key, names in step.reads.items()})
    return values if isinstance(values, (tuple, list)) else (values,)


def _loop(step: Step, env: Environment, states: dict[str, Tensor]) -> Sequence[Tensor]:
    condition, body = step.blocks
    values = _value(step.reads["loop_vars"], env)
    while True:
        env.update(zip(condition.inputs, values, strict=True))
        if not bool(_run(condition, env, states)[0]):
            return list(values)
        env.update(zip(body.inputs, values, strict=True))
        values = _run(body, env, states)


def _value(names: str | tuple[str, ...] | None, env: Environment) -> Any:
    if isinstance(names, tuple):
        return [env[name] for name in names]
    return None if names is None else env[names]


def _checked(step: Step, result: Result, value: Tensor) -> Tensor:
    """The value as the file declares it; an evaluator that makes another shape is wrong."""
    fits = len(result.shape) == value.dim() and all(
        declared is None or declared == size
        for declared, size in zip(result.shape, value.shape, strict=False)
    )
    if not fits:
        raise EngineError(
            f"The evaluator made another shape at {step.name!r} ({step.kind}) than the file says.",
            expected=[size if size is not None else "any" for size in result.shape],
            got=list(value.shape),
        )
    return _rounded(value, result)


def _rounded(value: Tensor, result: Result) -> Tensor:
    """Of the declared type; fp16 is kept in float32, rounded and cut to fp16's range."""
    dtype = DTYPE[result.dtype]
    if dtype == torch.float16:
        return value.half().float()
    return value.to(dtype)
