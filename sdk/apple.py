"""What the two rooms must agree on about a Core ML file: names, dtypes, systems, compute units.

A Core ML model takes and gives float32, float16 and int32 arrays of at least one axis. The other
dtypes of a signature cross that border here, whole: a number that int32 cannot hold is an error.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np

from sdk.errors import InputError
from sdk.signature import Array, TensorSpec

PACKAGE = "model.mlpackage"
# dtype of the signature -> dtype in the Core ML file
FILE_DTYPE = {
    "float32": "float32", "float16": "float16", "int32": "int32", "int64": "int32",
    "int16": "int32", "int8": "int32", "uint8": "int32", "bool": "int32",
}  # fmt: skip
# device of a target -> member of coremltools.ComputeUnit
UNITS = {"cpu": "CPU_ONLY", "gpu": "CPU_AND_GPU", "npu": "CPU_AND_NE"}
# deployment target -> first version of macOS that runs its files
SYSTEMS = {"iOS16": 13, "iOS17": 14, "iOS18": 15, "iOS26": 26}
DEPLOYMENT = "iOS18"
# Words of the language of these files, which no value can be named after.
RESERVED = frozenset(
    (
        "any", "bool", "program", "func", "tensor", "list", "dict", "tuple", "true", "false",
        "string", "state", "bf16", "fp16", "fp32", "fp64", "int8", "int16", "int32", "int64",
        "uint8", "uint16", "uint32", "uint64",
    )
)  # fmt: skip
INT32 = np.iinfo(np.int32)


def file_names(specs: Sequence[TensorSpec], taken: Sequence[str] = ()) -> list[str]:
    """Names of inputs or outputs in the file: the signature's, made identifiers and unique."""
    names: list[str] = []
    for spec in specs:
        name = re.sub(r"\W", "_", spec.name)
        if name in RESERVED or not name[:1].isalpha():
            name = f"value_{name}"
        while name in names or name in taken:
            name += "_out"
        names.append(name)
    return names


def to_file(feed: Mapping[str, Array], specs: Sequence[TensorSpec]) -> dict[str, Array]:
    """Inputs under the file's names, in its dtypes, with at least one axis."""
    return {
        name: _narrowed(feed[spec.name], spec).reshape(feed[spec.name].shape or (1,))
        for name, spec in zip(file_names(specs), specs, strict=True)
    }


def _narrowed(array: Array, spec: TensorSpec) -> Array:
    if spec.dtype == "int64" and array.size:
        low, high = int(array.min()), int(array.max())
        if low < INT32.min or high > INT32.max:
            raise InputError(
                f"The input {spec.name!r} has numbers that Core ML, which has int32, cannot hold.",
                expected=f"{INT32.min} to {INT32.max}",
                got=f"{low} to {high}",
            )
    return array.astype(FILE_DTYPE[spec.dtype], copy=False)


def from_file(
    results: Sequence[Array], specs: Sequence[TensorSpec], ranks: Sequence[int] | None = None
) -> dict[str, Array]:
    """Outputs under the signature's names, in its dtypes and ranks."""
    named = {}
    for index, (array, spec) in enumerate(zip(results, specs, strict=True)):
        rank = len(spec.shape) if ranks is None else ranks[index]
        shape = () if rank == 0 and array.size == 1 else array.shape
        named[spec.name] = array.astype(spec.dtype, order="C").reshape(shape)
    return named
