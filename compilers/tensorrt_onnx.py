"""A `Program` to the ONNX form that TensorRT's parser reads, and that ONNX Runtime reads alike."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
from onnx import GraphProto, NodeProto, TensorProto, numpy_helper

from sdk.compilers.onnx_file import write_onnx
from sdk.compilers.program import Program, SourceLine
from sdk.errors import UnsupportedOperatorError
from sdk.signature import Array

NOWHERE = SourceLine("", "", "")
LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


def to_onnx(program: Program, folder: Path) -> tuple[bytes, dict[str, SourceLine]]:
    """The serialized ONNX model and node name -> source. `folder` is for a file in between."""
    file = folder / "model.onnx"
    sources = write_onnx(program, file)
    model = onnx.load(file)
    file.unlink()
    _float_biases(model.graph)
    if program.precision == "bf16":
        _half_weights(model.graph)
        _spell_out(model.graph, sources)
    _check_zero_points(model.graph, sources)
    return model.SerializeToString(), sources


def constants_of(graph: GraphProto) -> dict[str, TensorProto]:
    """The initializers by name."""
    return {tensor.name: tensor for tensor in graph.initializer}


def _float_biases(graph: GraphProto) -> None:
    """Int32 biases become float again: TensorRT dequantizes 8 bits and fewer only."""
    constants = constants_of(graph)
    for node in [node for node in graph.node if node.op_type == "DequantizeLinear"]:
        data = constants.get(node.input[0])
        if data is None or data.data_type != TensorProto.INT32:
            continue
        scale = numpy_helper.to_array(constants[node.input[1]])
        value = (numpy_helper.to_array(data) * scale).astype(np.float32)
        graph.initializer.append(numpy_helper.from_array(value, node.output[0]))
        graph.node.remove(node)
    _drop_unused(graph)


def _half_weights(graph: GraphProto) -> None:
    """Weights that torch.onnx left in fp32 when it folded a batch norm into a bf16 layer."""
    constants = constants_of(graph)
    kinds = {name: tensor.data_type for name, tensor in constants.items()}
    halves = _bfloat16_values(graph)
    for node in graph.node:
        if node.op_type not in LAYERS or node.input[0] not in halves:
            continue
        for name in node.input[1:]:
            if kinds.get(name) == TensorProto.FLOAT:
                value = numpy_helper.to_array(constants[name]).astype(ml_dtypes.bfloat16)
                constants[name].CopyFrom(_bfloat16(value, name))


# What the parser only takes in fp32 and fp16 -> the operators of what the input is multiplied by.
FACTORS: dict[str, tuple[tuple[str, dict[str, float]], ...]] = {
    "HardSwish": (("HardSigmoid", {"alpha": 1 / 6, "beta": 0.5}),),
    "Mish": (("Softplus", {}), ("Tanh", {})),
}


def _spell_out(graph: GraphProto, sources: dict[str, SourceLine]) -> None:
    """Activations that are the input times a function of it, as these operators."""
    nodes = list(graph.node)
    del graph.node[:]
    for node in nodes:
        if node.op_type not in FACTORS:
            graph.node.append(node)
            continue
        value = node.input[0]
        for kind, attributes in FACTORS[node.op_type]:
            name = f"{node.name}.{kind.lower()}"
            made = onnx.helper.make_node(kind, [value], [name], name)
            made.attribute.extend(map(onnx.helper.make_attribute, attributes, attributes.values()))
            graph.node.append(made)
            value = name
            sources[name] = sources.get(node.name, NOWHERE)
        inputs = [node.input[0], value]
        graph.node.append(onnx.helper.make_node("Mul", inputs, node.output, node.name))


def _bfloat16(value: Array, name: str) -> TensorProto:
    return onnx.helper.make_tensor(
        name, TensorProto.BFLOAT16, value.shape, value.tobytes(), raw=True
    )


def _bfloat16_values(graph: GraphProto) -> set[str]:
    """Names of the values that are bf16, as far as shape inference can tell."""
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 22)])
    inferred = onnx.shape_inference.infer_shapes(model).graph
    values = (*inferred.value_info, *inferred.output)
    return {v.name for v in values if v.type.tensor_type.elem_type == TensorProto.BFLOAT16}


def _drop_unused(graph: GraphProto) -> None:
    used = {name for node in graph.node for name in node.input}
    used |= {value.name for value in graph.output}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)


def _check_zero_points(graph: GraphProto, sources: dict[str, SourceLine]) -> None:
    """Refuse what the parser would read as other numbers: it takes uint8 for int8."""
    constants = constants_of(graph)
    for node in graph.node:
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            continue
        zero = constants.get(node.input[2]) if len(node.input) > 2 else None
        if zero is None or (
            zero.data_type in SYMMETRIC and not numpy_helper.to_array(zero).astype(bool).any()
        ):
            continue
        raise _asymmetric(node, sources.get(node.name))


SYMMETRIC = (
    TensorProto.INT8, TensorProto.INT4, TensorProto.FLOAT8E4M3FN, TensorProto.FLOAT4E2M1,
)  # fmt: skip


def _asymmetric(node: NodeProto, source: SourceLine | None) -> UnsupportedOperatorError:
    place = f" in module {source.module!r}" if source is not None and source.module else ""
    return UnsupportedOperatorError(
        "TensorRT only has symmetric quantization: signed values with a zero point of 0.",
        expected="int8 values with zero point 0",
        got=f"{node.op_type} {node.name!r}{place}",
        fix="quantize the float program for this target: pass the model itself to sdk.compile",
    )
