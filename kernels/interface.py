"""`native/edge.h` for ctypes: the structures that pass between Python and the native code."""

from __future__ import annotations

import ctypes
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
