"""A row of the ONNX import tests: one node, how its inputs are drawn, and its file."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

Array = np.ndarray[Any, Any]
FLOAT, INT64, BOOL, UINT8, INT8 = (
    TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL, TensorProto.UINT8, TensorProto.INT8,
)  # fmt: skip


@dataclass(frozen=True)
class Draw:
    """A random tensor: given by the caller, or stored in the file."""

    shape: tuple[int, ...]
    stored: bool = False
    low: float | None = None
    """Lower bound of a uniform draw; else normal."""
    high: float = 2.0
    below: int | None = None
    """Upper bound of int64 numbers from 0 on; 2 is bool."""

    @property
    def dtype(self) -> int:
        """ONNX's number of the type."""
        return FLOAT if self.below is None else BOOL if self.below == 2 else INT64

    def array(self, rng: np.random.Generator, batch: int | None = None) -> Array:
        """Values, with another first size where the caller asks for one."""
        shape = (batch, *self.shape[1:]) if batch and self.shape else self.shape
        if self.below is not None:
            numbers = rng.integers(0, self.below, shape)
            return numbers.astype(bool) if self.below == 2 else numbers
        if self.low is not None:
            return rng.uniform(self.low, self.high, shape).astype(np.float32)
        return rng.standard_normal(shape, dtype=np.float32)


def x(*shape: int, low: float | None = None, high: float = 2.0) -> Draw:
    """An input."""
    return Draw(shape, low=low, high=high)


def i(*shape: int, below: int) -> Draw:
    """An int64 input, or a bool one."""
    return Draw(shape, below=below)


def w(*shape: int, low: float | None = None) -> Draw:
    """A random initializer."""
    return Draw(shape, stored=True, low=low)


def ints(*values: int) -> Array:
    """A stored int64 vector."""
    return np.array(values, np.int64)


def floats(*values: float) -> Array:
    """A stored float32 vector."""
    return np.array(values, np.float32)


@dataclass(frozen=True, eq=False)
class Row:
    """One node. Inputs are drawn, stored (arrays) or absent (None)."""

    op: str
    inputs: Sequence[Draw | Array | None]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    opset: int = 17
    outputs: tuple[int, ...] = (FLOAT,)
    dynamic: bool = True
    """Whether the first axis of the inputs is a batch that may vary."""

    def __str__(self) -> str:
        words = [f"{key}={value}".replace(" ", "") for key, value in self.attributes.items()]
        return "-".join([f"{self.op}{self.opset}", *map(_title, self.inputs), *words])

    def rng(self, index: int) -> np.random.Generator:
        """Values depend on the row alone."""
        return np.random.default_rng(zlib.crc32(f"{self}/{index}".encode()))

    def feed(self, index: int, batch: int | None = None) -> dict[str, Array]:
        """Values of the inputs."""
        rng = self.rng(index)
        given = {f"x{i}": d for i, d in enumerate(self.inputs) if _is_given(d)}
        return {name: draw.array(rng, batch) for name, draw in given.items()}

    def model(self) -> onnx.ModelProto:
        """The file."""
        rng, stored = self.rng(-1), []
        names = ["" if i is None else f"x{n}" for n, i in enumerate(self.inputs)]
        for name, value in zip(names, self.inputs, strict=True):
            if value is not None and not _is_given(value):
                array = value.array(rng) if isinstance(value, Draw) else value
                stored.append(onnx.numpy_helper.from_array(array, name))
        outputs = [f"y{n}" for n in range(len(self.outputs))]
        graph = helper.make_graph(
            [helper.make_node(self.op, names, outputs, name="node", **self.attributes)],
            "row",
            [
                helper.make_tensor_value_info(f"x{n}", d.dtype, self._shape(d.shape))
                for n, d in enumerate(self.inputs)
                if _is_given(d)
            ],
            [
                helper.make_tensor_value_info(n, t, None)
                for n, t in zip(outputs, self.outputs, strict=True)
            ],
            stored,
        )
        opset = helper.make_opsetid("", self.opset)
        model = helper.make_model(graph, opset_imports=[opset], ir_version=8)
        model = onnx.shape_inference.infer_shapes(model)
        for value in model.graph.output:
            if not value.type.tensor_type.HasField(
                "shape"
            ):  # GroupNormalization is not known to it
                value.type.tensor_type.shape.CopyFrom(model.graph.input[0].type.tensor_type.shape)
        return model

    def _shape(self, shape: tuple[int, ...]) -> list[int | str]:
        return ["N", *shape[1:]] if self.dynamic and shape else list(shape)


def _is_given(value: object) -> bool:
    return isinstance(value, Draw) and not value.stored


def _title(value: Draw | Array | None) -> str:
    if value is None:
        return "none"
    if isinstance(value, Draw):
        kind = "" if value.below is None else f"below{value.below}_"
        return kind + "x".join(map(str, value.shape))
    return str(value.tolist()).replace(" ", "")


def node(op: str, *inputs: Draw | Array | None, **attributes: Any) -> Row:
    """A row with a dynamic batch and one float output."""
    return Row(op, inputs, attributes)


def fixed(op: str, *inputs: Draw | Array | None, **attributes: Any) -> Row:
    """A row whose first axis is no batch."""
    return Row(op, inputs, attributes, dynamic=False)


def old(opset: int, op: str, *inputs: Draw | Array | None, **attributes: Any) -> Row:
    """A row of another opset."""
    return Row(op, inputs, attributes, opset=opset)


def typed(outputs: tuple[int, ...], row: Row) -> Row:
    """`row` with outputs of these types."""
    return Row(row.op, row.inputs, row.attributes, row.opset, outputs, row.dynamic)
