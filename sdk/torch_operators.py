"""The operators that a program for the engine `torch` may name: they compute, and do nothing else.

One list for both sides: what a compile writes is what a session reads.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

from sdk.extras import require

NAMESPACES = ("aten", "quantized_decomposed", "edge")
SCALARS = {
    "operator": (operator, ("add", "sub", "mul", "floordiv", "truediv", "mod", "neg", "pow",
                            "getitem", "eq", "ne", "lt", "le", "gt", "ge")),
    "math": (math, ("floor", "ceil", "trunc", "sqrt")),
    "torch": (None, ("sym_max", "sym_min", "sym_int", "sym_float", "sym_not", "sym_ite")),
}  # fmt: skip
FACTORIES = ("zeros", "ones", "full", "empty", "arange", "scalar_tensor", "eye", "linspace")


def operator_named(kind: str) -> Callable[..., Any] | None:
    """The tensor operator or scalar function `kind`; None where a program may not name it.

    AttributeError where torch has no such operator.
    """
    space, _, rest = kind.partition(".")
    torch: Any = require("torch", purpose="The engine 'torch'")
    if space in SCALARS:
        module, names = SCALARS[space]
        return getattr(module or torch, rest) if rest in names else None
    if space not in NAMESPACES:
        return None
    if space == "quantized_decomposed":
        require("torch.ao.quantization.fx._decomposed", purpose="Quantized programs")
    name, _, overload = rest.partition(".")
    function: Callable[..., Any] = getattr(
        getattr(getattr(torch.ops, space), name), overload or "default"
    )
    return function if _is_pure(function, name) else None


def _is_pure(function: Any, name: str) -> bool:
    """Computes on tensors: reads no file, unlike `aten.from_file`, which takes no tensor."""
    takes_tensor = any("Tensor" in str(argument.type) for argument in function._schema.arguments)
    return takes_tensor or name.removesuffix("_like") in FACTORIES
