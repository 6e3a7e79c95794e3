"""A kernel's description: a plain torch function is its oracle, shape rule and decomposition.

    @kernel("edge::scale_add", version=1, sample=cases, tolerance=Tolerance(1e-6, 1e-5))
    def scale_add(x: Tensor, y: Tensor, alpha: float = 1.0) -> Tensor:
        return x + alpha * y

Tensors come first, those that may be left out (`Tensor | None = None`) last among them, then
attributes: int, float or bool. The function gives a tensor or a tuple of them, none of which is an
input or a view of one, and changes nothing in place. It is written so that it also runs in float64,
where tests take it as the truth, and on tensors without data, where it is the rule for shapes.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sdk.errors import InputError
from sdk.extras import require
from sdk.parity import Tolerance

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch._ops import OpOverload

__all__ = ["DOMAIN", "Case", "KernelSpec", "Tolerance", "kernel"]

DOMAIN = "edge"
NAME = re.compile(rf"{DOMAIN}::([a-z][a-z0-9_]*)")
ATTRIBUTES = ("int", "float", "bool")
# Library objects must live as long as their operators.
_LIBRARIES: list[Any] = []
_DESCRIBED: dict[str, KernelSpec] = {}


@dataclass(frozen=True)
class Case:
    """Arguments for one call: tensors on the CPU by position, and attributes by name.

    Tensors may have any strides. A case without values has no answer of its own; what comes out is
    compared with the reference.
    """

    name: str
    tensors: tuple[torch.Tensor | None, ...]
    attributes: Mapping[str, int | float | bool] = field(default_factory=dict)
    tolerance: Tolerance | None = None
    """Where this case needs another one than its kernel."""


Sample = Callable[["np.random.Generator"], Iterable[Case]]


@dataclass(frozen=True)
class Parameter:
    """One argument of the kernel: a tensor, or an attribute with its type and default."""

    name: str
    kind: str
    """tensor, int, float or bool."""
    default: int | float | bool | None = None
    optional: bool = False


@dataclass(frozen=True)
class KernelSpec:
    """A kernel: name, version, reference, samples and tolerance. Calling it runs the operator."""

    name: str
    """With the domain: `edge::x`."""
    version: int
    reference: Callable[..., Any]
    sample: Sample
    tolerance: Tolerance
    parameters: tuple[Parameter, ...]
    outputs: int

    @property
    def short(self) -> str:
        """The name without its domain."""
        return self.name.partition("::")[2]

    @property
    def tensors(self) -> tuple[Parameter, ...]:
        """The arguments that are tensors."""
        return tuple(p for p in self.parameters if p.kind == "tensor")

    @property
    def attributes(self) -> tuple[Parameter, ...]:
        """The arguments that are numbers."""
        return tuple(p for p in self.parameters if p.kind != "tensor")

    @property
    def op(self) -> OpOverload[..., Any]:
        """`torch.ops.edge.<name>.default`."""
        torch = require("torch", purpose="plugin kernels in PyTorch")
        overload: OpOverload[..., Any] = getattr(torch.ops.edge, self.short).default
        return overload

    def __call__(self, *arguments: Any, **attributes: Any) -> Any:
        return self.op(*arguments, **attributes)

    def bound(self, attributes: Mapping[str, int | float | bool]) -> list[int | float | bool]:
        """Values of all attributes in the order of the specification."""
        unknown = sorted(set(attributes) - {p.name for p in self.attributes})
        missing = [
            p.name for p in self.attributes if p.default is None and p.name not in attributes
        ]
        if unknown or missing:
            raise InputError(
                f"{self.name} was called with other attributes than it has.",
                expected=[p.name for p in self.attributes],
                got=sorted(attributes),
            )
        defaults = {p.name: p.default for p in self.attributes if p.default is not None}
        values = {**defaults, **attributes}
        return [values[p.name] for p in self.attributes]


def kernel(
    name: str, *, version: int, sample: Sample, tolerance: Tolerance
) -> Callable[[Callable[..., Any]], KernelSpec]:
    """Make the operator `name` of a plain torch function.

    The operator runs the function itself, its shapes are those that the function has for tensors
    without data, and its gradient is the function's. `KernelSpec.reference` is the function.

    version: of what it computes and of its arguments; artifacts record it
    sample: cases for the tests, from a random generator
    tolerance: of the native code against the reference in float64
    """
    if NAME.fullmatch(name) is None:
        raise InputError("A kernel has another name.", expected=f"{DOMAIN}::lower_case", got=name)
    if version < 1:
        raise InputError(f"{name} has no usable version.", expected="1 or more", got=version)

    def describe(reference: Callable[..., Any]) -> KernelSpec:
        schema = _schema_of(name, reference)
        parameters = tuple(_parameter(name, argument) for argument in schema.arguments)
        _check_order(name, parameters)
        spec = KernelSpec(
            name, version, reference, sample, tolerance, parameters, len(schema.returns)
        )
        _register(spec, schema)
        _DESCRIBED[spec.name] = spec
        return spec

    return describe


def described(name: str) -> KernelSpec | None:
    """The kernel of an operator, `edge::x`, if its description was imported."""
    return _DESCRIBED.get(name)


def _schema_of(name: str, reference: Callable[..., Any]) -> Any:
    """The torch schema of the function's annotations."""
    torch = require("torch", purpose="describing a plugin kernel")
    try:
        text = torch.library.infer_schema(reference, mutates_args=(), op_name=name)
    except ValueError as error:
        raise InputError(
            f"The arguments of {name} cannot be those of an operator.",
            expected=f"annotated tensors, then {', '.join(ATTRIBUTES)}",
            got=str(inspect.signature(reference)),
        ) from error
    return torch._C.parse_schema(text)


def _parameter(name: str, argument: Any) -> Parameter:
    kind = str(argument.type)
    if kind in ("Tensor", "Optional[Tensor]"):
        return Parameter(argument.name, "tensor", optional=kind != "Tensor")
    if kind not in ATTRIBUTES:
        raise InputError(
            f"{name} has an argument that engines cannot carry: {argument.name}.",
            expected=f"a tensor, {' or '.join(ATTRIBUTES)}",
            got=kind,
        )
    return Parameter(argument.name, kind, argument.default_value)


def _check_order(name: str, parameters: tuple[Parameter, ...]) -> None:
    ranks = [(p.kind != "tensor") * 2 + p.optional for p in parameters]
    if ranks != sorted(ranks) or not ranks or ranks[0] != 0:
        raise InputError(
            f"The arguments of {name} are in another order than engines need.",
            expected="tensors, then tensors that may be left out, then attributes",
            got=[p.name for p in parameters],
        )


def _register(spec: KernelSpec, schema: Any) -> None:
    """Define the operator once; a second definition must be the same one."""
    torch = require("torch", purpose="describing a plugin kernel")
    existing = getattr(torch.ops.edge, spec.short, None)
    if existing is not None:
        if str(existing.default._schema) != str(schema):
            raise InputError(
                f"{spec.name} is there already, with other arguments.",
                expected=str(existing.default._schema),
                got=str(schema),
                fix="give one of the two another name, or start a new process",
            )
        return
    library = torch.library.Library(DOMAIN, "FRAGMENT")
    library.define(str(schema).removeprefix(f"{DOMAIN}::"))
    library.impl(spec.short, spec.reference, "CompositeExplicitAutograd")
    torch.library.register_fake(spec.name, spec.reference, lib=library)
    _LIBRARIES.append(library)
    _register_gradient(spec, library)


def _register_gradient(spec: KernelSpec, library: Any) -> None:
    """The gradient of the reference: computed again from the inputs, with nothing kept between."""
    torch = require("torch", purpose="describing a plugin kernel")

    def keep(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:  # noqa: ARG001
        ctx.tensors = [i for i, value in enumerate(inputs) if isinstance(value, torch.Tensor)]
        ctx.save_for_backward(*(inputs[i] for i in ctx.tensors))
        ctx.arguments = [None if i in ctx.tensors else value for i, value in enumerate(inputs)]

    def back(ctx: Any, *gradients: Any) -> tuple[Any, ...]:
        arguments = list(ctx.arguments)
        wanted = [i for i in ctx.tensors if ctx.needs_input_grad[i]]
        for i, tensor in zip(ctx.tensors, ctx.saved_tensors, strict=True):
            arguments[i] = tensor.detach().requires_grad_(i in wanted)
        with torch.enable_grad():
            outputs = spec.reference(*arguments)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        pairs = [(o, g) for o, g in zip(outputs, gradients, strict=True)
                 if o.requires_grad and g is not None]  # fmt: skip
        found = torch.autograd.grad(
            [o for o, _ in pairs], [arguments[i] for i in wanted], [g for _, g in pairs],
            allow_unused=True,
        )  # fmt: skip
        by_input = dict(zip(wanted, found, strict=True))
        return tuple(by_input.get(i) for i in range(len(arguments)))

    torch.library.register_autograd(spec.name, back, setup_context=keep, lib=library)
