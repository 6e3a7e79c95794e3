"""int2 weights for OpenVINO: four in a byte, which it reads from its own format alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from sdk.compilers.weight_only_graph import packed
from sdk.extras import require
from sdk.signature import Array

MIDDLE = 2  # what unsigned 2-bit numbers are counted from


def use_two_bits(file: Path) -> Path:
    """The ONNX file, or in its place `model.xml` and `model.bin`, where these are smaller.

    The text of the graph costs more than a small model's weights gain. Embeddings stay at four bits
    a number, for OpenVINO would gather two-bit rows from a matrix made float when it loads.
    """
    ov = require("openvino", purpose="Compiling int2 for OpenVINO")
    model = ov.Core().read_model(file)
    for convert, constant in list(_weights(model)):
        _narrow(ov, convert, constant)
    made = file.with_suffix(".xml")
    ov.save_model(model, made, compress_to_fp16=False)
    files = (made, made.with_suffix(".bin"))
    if sum(part.stat().st_size for part in files) < file.stat().st_size:
        file.unlink()
        return made
    for part in files:
        part.unlink()
    return file


def _weights(model: Any) -> Iterator[tuple[Any, Any]]:
    """The conversions of 4-bit constants that only matrix products read, and the constants."""
    for node in model.get_ops():
        if node.get_type_name() != "Convert":
            continue
        source = node.input_value(0).get_node()
        if source.get_type_name() == "Reshape":
            source = source.input_value(0).get_node()
        if (
            source.get_type_name() != "Constant"
            or source.get_element_type().get_type_name() != "i4"
        ):
            continue
        if set(_readers(node)) == {"MatMul"}:
            yield node, source


def _readers(node: Any) -> Iterator[str]:
    """What reads a weight, behind the scale, reshapes and transposes."""
    for port in node.output(0).get_target_inputs():
        reader = port.get_node()
        if reader.get_type_name() in ("Multiply", "Reshape", "Transpose"):
            yield from _readers(reader)
        elif reader.get_type_name() != "ShapeOf":
            yield reader.get_type_name()


def _narrow(ov: Any, convert: Any, constant: Any) -> None:
    """Put the same numbers as u2 less 2 in the place of the conversion."""
    op, to = ov.opset13, convert.get_output_element_type(0)
    values = packed(_signed(constant) + MIDDLE, 2)
    numbers, middle = (
        ov.op.Constant(ov.Tensor(array, ov.Shape(shape), ov.Type.u2), shared_memory=False)
        for array, shape in (
            (values, convert.get_output_shape(0)),
            (np.array([MIDDLE], np.uint8), [1]),
        )
    )
    made = op.subtract(op.convert(numbers, to.to_string()), op.convert(middle, to.to_string()))
    convert.output(0).replace(made.output(0))
    for port in constant.output(0).get_target_inputs():
        reader = port.get_node()
        if reader.get_type_name() == "ShapeOf":
            kind = reader.get_output_element_type(0).to_dtype()
            shape = op.constant(np.array(constant.get_output_shape(0), kind))
            reader.output(0).replace(shape.output(0))


def _signed(constant: Any) -> Array:
    """The integers of a 4-bit constant, flat."""
    pairs = constant.get_data(dtype=np.int8).view(np.uint8)
    values = np.stack([pairs & 15, pairs >> 4], axis=-1).reshape(-1).astype(np.int8)
    return np.where(values > 7, values - 16, values).astype(np.int8)
