"""MIL operators in torch, one table per family: name -> function of the operator's named inputs.

Tensors come in as they are, numbers and flags as tensors of rank 0, text as `str`, what is absent
as None; half precision arrives widened to float32. The meaning of each operator is that of the
classes in `coremltools.converters.mil.mil.ops.defs`, of the opsets iOS15 to iOS18.
"""

from __future__ import annotations

from sdk.compilers.mil.operators import (
    elementwise,
    images,
    indexing,
    layers,
    quantized,
    random,
    recurrent,
    reductions,
    shapes,
)
from sdk.compilers.mil.operators.arguments import Operator

OPERATORS: dict[str, Operator] = {
    **elementwise.OPERATORS,
    **images.OPERATORS,
    **indexing.OPERATORS,
    **layers.OPERATORS,
    **quantized.OPERATORS,
    **random.OPERATORS,
    **recurrent.OPERATORS,
    **reductions.OPERATORS,
    **shapes.OPERATORS,
}
