"""`native/edge.h` for ctypes: the structures that pass between Python and the native code."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import POINTER, c_char_p, c_double, c_int32, c_int64, c_void_p

ABI_VERSION = 1
MAX_RANK = 8
# By their number in edge_dtype.
DTYPES = ("float32", "float16", "bfloat16", "int8", "uint8", "int32", "int64", "bool", "float64")
# The letters for them in edge_kernel.types.
LETTERS = "feEbBil?d"
NONE = -1


class CTensor(ctypes.Structure):
    """edge_tensor."""

    _fields_ = (
        ("data", c_void_p),
        ("shape", c_int64 * MAX_RANK),
        ("strides", c_int64 * MAX_RANK),
        ("rank", c_int32),
        ("dtype", c_int32),
    )


class CValue(ctypes.Union):
    """edge_value."""

    _fields_ = (("integer", c_int64), ("number", c_double))


def values_of(
    are_numbers: Sequence[bool], given: Sequence[int | float | bool]
) -> ctypes.Array[CValue]:
    """Values of attributes, each a number or an integer; one at least, as C wants it."""
    values = (CValue * max(len(given), 1))()
    for value, is_number, one in zip(values, are_numbers, given, strict=False):
        if is_number:
            value.number = float(one)
        else:
            value.integer = int(one)
    return values


class CAttribute(ctypes.Structure):
    """edge_attribute."""

    _fields_ = (("name", c_char_p), ("is_number", c_int32))


TASK = ctypes.CFUNCTYPE(None, c_void_p, c_int32)


class CPool(ctypes.Structure):
    """edge_pool."""

    _fields_ = (
        ("self", c_void_p),
        ("threads", c_int32),
        ("run", ctypes.CFUNCTYPE(None, c_void_p, c_int32, TASK, c_void_p)),
    )


SHAPE = ctypes.CFUNCTYPE(c_char_p, POINTER(CTensor), c_int32, POINTER(CValue), POINTER(CTensor))
RUN = ctypes.CFUNCTYPE(
    c_char_p, POINTER(CPool), POINTER(CTensor), c_int32, POINTER(CValue), POINTER(CTensor)
)


class CKernel(ctypes.Structure):
    """edge_kernel."""

    _fields_ = (
        ("name", c_char_p),
        ("version", c_int32),
        ("min_inputs", c_int32),
        ("max_inputs", c_int32),
        ("outputs", c_int32),
        ("attributes", POINTER(CAttribute)),
        ("shape", SHAPE),
        ("run", RUN),
        ("types", c_char_p),
    )
