"""fp8 (e4m3): Q/DQ pairs before convolutions and linear layers, one scale a tensor.

The scale takes the largest value that calibration saw to 448, the largest of e4m3. Nothing else is
quantized: GPUs run products in fp8 and the rest in float. The pairs are torchao's own operators.
"""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import onnx
import torch
from onnxscript import opset20 as op
from torch import Tensor
from torch.fx import GraphModule, Node

from sdk.compilers.annotate import WEIGHTED, IntegerKernels, is_float, is_weight, layer_of, mark
from sdk.compilers.onnx_file import TRANSLATIONS
from sdk.errors import QuantizationError
from sdk.extras import quiet

with quiet("torchao"):
    from torchao.quantization.pt2e.observer import ObserverBase
    from torchao.quantization.pt2e.quantizer import QuantizationAnnotation, QuantizationSpec
    from torchao.quantization.pt2e.utils import create_getattr_from_value

E4M3 = torch.float8_e4m3fn
LARGEST = torch.finfo(E4M3).max
EPS = 2**-24  # smallest scale: a tensor of zeros stays finite
QUANTIZE = torch.ops.torchao.quantize_affine_float8_non_decomposed.default
DEQUANTIZE = torch.ops.torchao.dequantize_affine_float8_non_decomposed.default


class LargestValue(ObserverBase):  # type: ignore[misc]  # torchao has no type information
    """Remembers the largest absolute value; `convert` puts the pair where the observer stood."""

    largest: Tensor

    def __init__(self, dtype: torch.dtype, **_: Any) -> None:
        super().__init__(dtype)
        self.register_buffer("largest", torch.tensor(-1.0))

    def forward(self, x: Tensor) -> Tensor:
        """Observe `x`, and pass it through."""
        if x.numel():
            self.largest = torch.maximum(self.largest, x.detach().abs().max())
        return x

    def calculate_qparams(self) -> Tensor:
        """The scale, a scalar in fp32."""
        return (self.largest / LARGEST).clamp(min=EPS)

    def convert(self, model: GraphModule, node: Node) -> None:
        """Replace the observer's node; a weight is stored in fp8."""
        if self.largest < 0:
            raise QuantizationError(
                f"The observer {node.target} saw no values: its part of the model did not run."
            )
        scale = self.calculate_qparams()
        with model.graph.inserting_before(node):
            at = create_getattr_from_value(model, model.graph, "fp8_scale", scale, scale.device)
            source = node.args[0]
            assert isinstance(source, Node)
            if source.op == "get_attr":
                weight = QUANTIZE(_value(model, str(source.target)), scale, E4M3)
                values = create_getattr_from_value(
                    model, model.graph, "fp8_weight", weight, scale.device
                )
            else:
                values = model.graph.call_function(QUANTIZE, (source, at, E4M3))
            pair = model.graph.call_function(DEQUANTIZE, (values, at, torch.float32))
        node.replace_all_uses_with(pair)
        model.graph.erase_node(node)


GRID = QuantizationSpec(dtype=E4M3, observer_or_fake_quant_ctr=LargestValue)


class ProductsOnly(IntegerKernels):
    """Marks the inputs and weights of convolutions and linear layers."""

    def __init__(self, keep_float: frozenset[str]) -> None:
        super().__init__(keep_float, GRID)

    def annotate(self, model: GraphModule) -> GraphModule:
        """Mark `model` in place."""
        for node in model.graph.nodes:
            if node.target not in WEIGHTED or not is_weight(node.args[1]):
                continue
            if not is_float(node.args[0]):
                continue
            self.layers.append(layer_of(node))
            if self.layers[-1] not in self.keep_float:
                mark(node, QuantizationAnnotation({node.args[0]: GRID, node.args[1]: GRID}))
        self._check_kept()
        return model


def _value(model: GraphModule, target: str) -> Tensor:
    owner, _, name = target.rpartition(".")
    value = getattr(model.get_submodule(owner), name)
    assert isinstance(value, Tensor)
    return value.detach()


def _zero() -> Any:
    """Its type is what tells ONNX the grid."""
    data = np.zeros((), ml_dtypes.float8_e4m3fn).tobytes()
    tensor = onnx.helper.make_tensor("zero", onnx.TensorProto.FLOAT8E4M3FN, (), data, raw=True)
    return op.Constant(value=tensor)


def _quantize(x: Any, scale: Any, *_dtype: Any) -> Any:
    return op.QuantizeLinear(x, scale, _zero())


def _dequantize(x: Any, scale: Any, *_dtype: Any) -> Any:
    return op.DequantizeLinear(x, scale)


TRANSLATIONS |= {QUANTIZE: _quantize, DEQUANTIZE: _dequantize}
