"""Plugin kernels in Core ML, which has no plugins: as composites of its own operators.

A kernel's folder may have a `coreml.py` with a function `composite(mb, *tensors, **attributes)`, of
coremltools' builder and values; it gives a value, or a tuple of them. It is for operators of Core
ML that the kernel's plain function would not become by itself.
"""

from __future__ import annotations

from typing import Any

from coremltools.converters.mil.frontend.torch.ops import _get_inputs

from sdk.compilers.mil.frontend import translates
from sdk.kernels.registry import composite_of
from sdk.kernels.spec import KernelSpec


def register(spec: KernelSpec) -> None:
    """Let coremltools translate the kernel's node by its composite."""
    composite = composite_of(spec.short)

    def translate(context: Any, node: Any) -> None:
        given = _arguments(spec, _get_inputs(context, node), node.kwinputs or {}, context)
        made = composite(*given[0], **given[1])
        if spec.outputs == 1:
            context.add(made, node.name)
        else:
            context.add(tuple(made), node.name)

    translate.__name__ = f"edge_{spec.short}"
    translates(spec.name)(translate)


def _arguments(
    spec: KernelSpec, values: list[Any], named: dict[str, Any], context: Any
) -> tuple[list[Any], dict[str, Any]]:
    """The builder and the tensors, and the attributes by name as Python numbers."""
    from coremltools.converters.mil import Builder

    given = dict(zip((p.name for p in spec.parameters), values, strict=False))
    given |= {name: context[value[0]] for name, value in named.items()}
    tensors = [given.get(p.name) for p in spec.tensors]
    attributes = {p.name: _number(given.get(p.name, p.default)) for p in spec.attributes}
    return [Builder, *tensors], attributes


def _number(value: Any) -> int | float | bool:
    """Of a constant of the program, or of Python."""
    found = getattr(value, "val", value)
    number: int | float | bool = found.item() if hasattr(found, "item") else found
    return number
