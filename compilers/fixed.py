"""NPUs run fixed shapes."""

from __future__ import annotations

from sdk.errors import UnsupportedOperatorError
from sdk.signature import Dim, Signature
from sdk.target import Target


def check_shapes(signature: Signature, target: Target) -> None:
    """Raise UnsupportedOperatorError where the target is an NPU and an input has a dim that varies.

    QNN would leave the whole model to the CPU, and OpenVINO's NPU refuses it.
    """
    names = sorted(
        {dim.name for spec in signature.inputs for dim in spec.shape if isinstance(dim, Dim)}
    )
    if names and target.device == "npu":
        raise UnsupportedOperatorError(
            "The NPU runs fixed shapes only.",
            expected="inputs without dynamic dimensions",
            got=f"dynamic {', '.join(names)}",
            fix="compile without dynamic=..., one artifact for each size",
        )
