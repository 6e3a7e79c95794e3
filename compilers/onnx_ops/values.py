"""What flows between ONNX nodes: tensors, and shapes that are kept on the host.

A shape that a graph computes (Shape, Gather, Concat, Reshape) stays a small NumPy array of Python
numbers. Under torch.export its entries may be symbolic sizes; such an array has dtype object. It
becomes a tensor only where an operator computes on data, so no data-dependent symbol ever arises.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from sdk.errors import UnsupportedOperatorError

Host = npt.NDArray[Any]
Size = Any  # int | torch.SymInt; torch's own stubs type a SymInt as int
Rule = Callable[..., Any]

SYMBOLIC = (torch.SymInt, torch.SymFloat, torch.SymBool)
HOST_LIMIT = 1024  # entries; a shape is smaller, and what is larger is data

# TensorProto.DataType -> torch; types that are not here are refused when the file is read
DTYPES = {
    1: torch.float32,
    2: torch.uint8,
    3: torch.int8,
    4: torch.uint16,
    5: torch.int16,
    6: torch.int32,
    7: torch.int64,
    9: torch.bool,
    10: torch.float16,
    11: torch.float64,
    12: torch.uint32,
    13: torch.uint64,
    16: torch.bfloat16,
}


def dtype_of(data_type: int, name: str) -> torch.dtype:
    """TensorProto.DataType -> torch dtype; UnsupportedOperatorError for types not covered."""
    if data_type in DTYPES:
        return DTYPES[data_type]
    from onnx import TensorProto

    raise UnsupportedOperatorError(
        f"{name!r} has a type that the importer does not cover.",
        expected="a float of 16, 32 or 64 bits, an integer of 8 to 64 bits, or bool",
        got=TensorProto.DataType.Name(data_type),
    )


def symbolic(value: object) -> bool:
    """Whether `value` is a number that torch.export left open."""
    return isinstance(value, SYMBOLIC)


def boxed(values: Iterable[Any]) -> Host:
    """1-D object array that keeps symbolic sizes as they are."""
    entries = list(values)
    box = np.empty(len(entries), dtype=object)
    for index, entry in enumerate(entries):
        box[index] = entry
    return box


def tidy(value: Any) -> Host:
    """`value` as a host array, typed where every entry is a plain number."""
    array = value if isinstance(value, np.ndarray) else boxed([value]).reshape(())
    if array.dtype != object:
        return array
    flat = array.ravel().tolist()
    if any(symbolic(entry) for entry in flat):
        return array
    typed = np.array(flat) if flat else np.empty(0, np.int64)
    return typed.astype(np.float32 if typed.dtype == np.float64 else typed.dtype).reshape(
        array.shape
    )


def from_numpy(array: Host) -> torch.Tensor:
    """A tensor with its own memory; bfloat16, which NumPy lacks, goes through its bits."""
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16)
    return torch.from_numpy(array.copy())


def as_tensor(value: Any) -> Any:
    """Host array -> tensor (int64, float32 or the array's own dtype); anything else unchanged."""
    if not isinstance(value, np.ndarray):
        return value
    flat = value.ravel().tolist()
    if value.dtype != object:
        dtype = torch.from_numpy(np.empty(0, value.dtype)).dtype
        return torch.tensor(flat, dtype=dtype).reshape(value.shape)
    dtype = (
        torch.float32 if any(isinstance(v, float | torch.SymFloat) for v in flat) else torch.int64
    )
    return torch.stack([torch.scalar_tensor(v, dtype=dtype) for v in flat]).reshape(value.shape)


def numbers(value: Any) -> list[Any]:
    """Entries of an attribute or of a host input.

    Raises UnsupportedOperatorError for a tensor: a size that depends on data cannot be captured.
    """
    if isinstance(value, torch.Tensor):
        raise UnsupportedOperatorError(
            "A shape, axis or size is computed from the data of the model's inputs.",
            expected="a constant, or a value computed from the inputs' shapes",
            fix="fold it with onnxsim or export the model with that size fixed",
        )
    if isinstance(value, np.ndarray):
        return list(value.ravel().tolist())
    return list(value) if isinstance(value, list | tuple) else [value]


def number(value: Any) -> Any:
    """The one entry of an attribute or of a host input; errors as `numbers`."""
    return numbers(value)[0]


def sym_max(a: Size, b: Size) -> Size:
    """The larger; symbolic where either is."""
    larger: Size = torch.sym_max(a, b)  # type: ignore[no-untyped-call]
    return larger


def sym_min(a: Size, b: Size) -> Size:
    """The smaller; symbolic where either is."""
    smaller: Size = torch.sym_min(a, b)  # type: ignore[no-untyped-call]
    return smaller


def axis_of(axis: int, rank: int) -> int:
    """`axis` counted from the front."""
    return axis + rank if axis < 0 else axis


def product(sizes: Iterable[Size]) -> Size:
    """Product that keeps symbolic sizes symbolic."""
    total: Size = 1
    for size in sizes:
        total = total * size
    return total
