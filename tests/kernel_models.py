"""Models of one node, a plugin kernel's, for the tests of the bindings: in torch, and as ONNX."""

from __future__ import annotations

from collections.abc import Collection

import onnx
import torch
from torch import nn

from sdk.kernels.spec import Case, KernelSpec

ELEMENT = {
    torch.float32: onnx.TensorProto.FLOAT,
    torch.float16: onnx.TensorProto.FLOAT16,
    torch.bfloat16: onnx.TensorProto.BFLOAT16,
    torch.int8: onnx.TensorProto.INT8,
    torch.uint8: onnx.TensorProto.UINT8,
    torch.int32: onnx.TensorProto.INT32,
    torch.int64: onnx.TensorProto.INT64,
    torch.bool: onnx.TensorProto.BOOL,
    torch.float64: onnx.TensorProto.DOUBLE,
    torch.float64: onnx.TensorProto.DOUBLE,
}


class Call(nn.Module):
    """The kernel's operator on the tensors that a case has; those at some places are weights."""

    def __init__(self, spec: KernelSpec, case: Case, weights: Collection[int] = ()) -> None:
        super().__init__()
        self.spec, self.case = spec, case
        for i in weights:
            if i < len(case.tensors) and (tensor := case.tensors[i]) is not None:
                self.register_buffer(f"weight{i}", tensor.contiguous())

    def inputs(self) -> list[torch.Tensor]:
        """The case's tensors that are no weights."""
        own = dict(self.named_buffers())
        tensors = enumerate(self.case.tensors)
        return [t.contiguous() for i, t in tensors if t is not None and f"weight{i}" not in own]

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """What the kernel computes."""
        given, own = iter(tensors), dict(self.named_buffers())
        arguments = [
            None if t is None else own[name] if (name := f"weight{i}") in own else next(given)
            for i, t in enumerate(self.case.tensors)
        ]
        made = self.spec.op(*arguments, **self.case.attributes)
        return made if isinstance(made, tuple) else (made,)


def model_of(
    spec: KernelSpec, case: Case, outputs: list[torch.Tensor], open_axes: int = 8
) -> bytes:
    """A model of one node; the first sizes are open. Tensors at odd places are constants."""
    helper, values, constants = onnx.helper, [], []
    for i, tensor in enumerate(case.tensors):
        if tensor is not None and is_constant(i, tensor):
            constants.append(_constant(f"x{i}", tensor))
        elif tensor is not None:
            shape = [
                f"x{i}_{axis}" if axis < open_axes else size
                for axis, size in enumerate(tensor.shape)
            ]
            values.append(helper.make_tensor_value_info(f"x{i}", ELEMENT[tensor.dtype], shape))
    given = {p.name: v for p, v in zip(spec.attributes, spec.bound(case.attributes), strict=True)}
    kinds = {"int": int, "bool": int, "float": float}
    node = helper.make_node(
        spec.short,
        ["" if t is None else f"x{i}" for i, t in enumerate(case.tensors)],
        [f"y{i}" for i in range(spec.outputs)],
        domain="edge",
        **{p.name: kinds[p.kind](given[p.name]) for p in spec.attributes},
    )
    results = [
        helper.make_tensor_value_info(f"y{i}", ELEMENT[o.dtype], None)
        for i, o in enumerate(outputs)
    ]
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("edge", spec.version)]
    graph = helper.make_graph([node], "kernel", values, results, constants)
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    return bytes(model.SerializeToString())


def is_constant(place: int, tensor: torch.Tensor) -> bool:
    return place % 2 == 1 and tensor.numel() > 0


def _constant(name: str, tensor: torch.Tensor) -> onnx.TensorProto:
    raw = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return onnx.helper.make_tensor(name, ELEMENT[tensor.dtype], tensor.shape, raw, raw=True)
