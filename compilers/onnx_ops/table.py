"""The ONNX operators that the importer knows, as an explicit table.

OPERATORS maps an operator of the default domain to its rule: inputs positional (a tensor, a host
array at the positions of HOST_INPUTS, None where absent), attributes as keywords. HOST_OPERATORS
has the rules for shapes. LIMITS says which attributes a rule does not take, and which of their
values may be ignored.
"""

from __future__ import annotations

from sdk.compilers.onnx_ops.arithmetic import ARITHMETIC, ARITHMETIC_BEFORE
from sdk.compilers.onnx_ops.host import HOST_OPERATORS, shape, size
from sdk.compilers.onnx_ops.layers import LAYERS, LAYERS_BEFORE
from sdk.compilers.onnx_ops.layout import LAYOUT
from sdk.compilers.onnx_ops.resize import COORDINATES, RESIZE, RESIZE_BEFORE
from sdk.compilers.onnx_ops.values import Rule

__all__ = ["HOST_INPUTS", "HOST_OPERATORS", "LIMITS", "OPERATORS", "WEIGHTS", "rule_for"]

OPERATORS: dict[str, Rule] = {
    **ARITHMETIC,
    **LAYERS,
    **LAYOUT,
    **RESIZE,
    "Shape": shape,
    "Size": size,
}

_BEFORE = {**ARITHMETIC_BEFORE, **LAYERS_BEFORE, **RESIZE_BEFORE}

# positions of inputs that are shapes, axes or bounds, not data
HOST_INPUTS: dict[str, tuple[int, ...]] = {
    "Clip": (1, 2),
    "ConstantOfShape": (0,),
    "CumSum": (1,),
    "Expand": (1,),
    "Gather": (1,),
    "OneHot": (1,),
    "Pad": (1, 2, 3),
    "Range": (0, 1, 2),
    "Reshape": (1,),
    "Resize": (1, 2, 3),
    "Slice": (1, 2, 3, 4),
    "Split": (1,),
    "Squeeze": (1,),
    "Tile": (1,),
    "TopK": (1,),
    "Trilu": (1,),
    "Unsqueeze": (1,),
    "Upsample": (1,),
    **{op: (1,) for op in OPERATORS if op.startswith("Reduce")},
}

# attribute -> values under which leaving it out changes nothing (None: any value)
LIMITS: dict[str, dict[str, tuple[object, ...] | None]] = {
    "BatchNormalization": {"momentum": None, "spatial": (1,), "training_mode": (0,)},
    "Cast": {"round_mode": None, "saturate": None},
    "Conv": {"kernel_shape": None},
    "ConvTranspose": {"kernel_shape": None},
    "DequantizeLinear": {"block_size": (0,), "output_dtype": (0,)},
    "Dropout": {"ratio": None, "seed": None},
    "GatherND": {"batch_dims": (0,)},
    "GroupNormalization": {"stash_type": None},
    "LayerNormalization": {"stash_type": None},
    "MaxPool": {"storage_order": None},
    "QuantizeLinear": {
        "block_size": (0,),
        "output_dtype": (0,),
        "precision": (0,),
        "saturate": None,
    },
    "RMSNormalization": {"stash_type": None},
    "Resize": {
        "antialias": (0,),
        "coordinate_transformation_mode": tuple(COORDINATES),
        "exclude_outside": (0,),
        "extrapolation_value": None,
        "keep_aspect_ratio_policy": ("stretch",),
    },
    "ScatterElements": {"reduction": ("none",)},
    "ScatterND": {"reduction": ("none",)},
}

# positions of constants that become parameters or statistics, and their names on the submodule
WEIGHTS: dict[str, tuple[str, ...]] = {
    "BatchNormalization": ("", "weight", "bias", "running_mean", "running_var"),
    "Conv": ("", "weight", "bias"),
    "ConvTranspose": ("", "weight", "bias"),
    "Gemm": ("", "weight", "bias"),
    "GroupNormalization": ("", "weight", "bias"),
    "InstanceNormalization": ("", "weight", "bias"),
    "LayerNormalization": ("", "weight", "bias"),
    "MatMul": ("", "weight"),
    "PRelu": ("", "weight"),
    "RMSNormalization": ("", "weight"),
}


def rule_for(op: str, opset: int) -> Rule:
    """The rule of `op` in this opset of the default domain; KeyError where there is none."""
    older = [_BEFORE[name, limit] for name, limit in _BEFORE if name == op and opset < limit]
    return older[0] if older else OPERATORS[op]
