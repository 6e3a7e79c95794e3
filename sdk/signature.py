"""The ordered, named inputs and outputs of a function, and the only check of what is fed to it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sdk.errors import InputError

Array = NDArray[np.generic]
DTYPES = (
    "float32", "float16", "float64", "int64", "int32", "int16", "int8", "uint8", "bool",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Dim:
    """A dimension whose size may vary: `min` to `max`, tuned for `opt`. Sizes are counts."""

    name: str
    min: int = 1
    opt: int | None = None
    max: int = 64

    def __post_init__(self) -> None:
        opt = self.min if self.opt is None else self.opt
        object.__setattr__(self, "opt", opt)
        counts = all(type(size) is int for size in (self.min, opt, self.max))
        if not self.name.isidentifier() or not (counts and 1 <= self.min <= opt <= self.max):
            raise InputError(
                f"The dimension {self.name!r} is not usable.",
                expected="an identifier and whole numbers 1 <= min <= opt <= max",
                got=f"min={self.min}, opt={self.opt}, max={self.max}",
                fix="for example sdk.Dim('batch', 1, 1, 16)",
            )

    def __contains__(self, size: int) -> bool:
        return self.min <= size <= self.max

    def __str__(self) -> str:
        return f"{self.name}({self.min}..{self.max})"


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Name, dtype (NumPy's name) and shape of one input or output."""

    name: str
    dtype: str
    shape: tuple[int | Dim, ...]

    def __post_init__(self) -> None:
        sizes = all(isinstance(dim, Dim) or dim >= 0 for dim in self.shape)
        if not self.name or self.dtype not in DTYPES or not sizes:
            raise InputError(
                f"The tensor {self.name!r} is not usable.",
                expected=f"a name, a dtype among {', '.join(DTYPES)} and sizes of 0 or more",
                got=self,
            )

    def __str__(self) -> str:
        return f"{self.dtype}[{', '.join(map(str, self.shape))}]"


@dataclass(frozen=True, slots=True)
class Signature:
    """Inputs and outputs, in order. Names are unique on each side."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def __post_init__(self) -> None:
        for specs in (self.inputs, self.outputs):
            names = [spec.name for spec in specs]
            if len(set(names)) != len(names):
                raise InputError("Two inputs or two outputs share a name.", got=names)

    def check(self, feed: Mapping[str, Array]) -> None:
        """Raise InputError unless `feed` has these inputs, dtypes and shapes. Never casts."""
        sizes: dict[str, int] = {}
        for spec in self.inputs:
            array = feed.get(spec.name)
            if (
                array is None
                or not isinstance(array, np.ndarray)
                or array.dtype != spec.dtype
                or not fits(array.shape, spec.shape, sizes)
            ):
                raise _explain(spec, array, self._bound(spec, feed))
        if len(feed) != len(self.inputs):
            known = [spec.name for spec in self.inputs]
            extra = sorted(map(str, set(feed) - set(known)))
            raise InputError(
                f"Inputs that the model does not have: {extra}.",
                expected=", ".join(known),
                got=", ".join(map(str, feed)),
                fix="leave the extra inputs out",
            )

    def _bound(self, spec: TensorSpec, feed: Mapping[str, Array]) -> dict[str, int]:
        """Sizes of the named dims of `spec` that the inputs before it have set."""
        sizes: dict[str, int] = {}
        for earlier in self.inputs[: self.inputs.index(spec)]:
            fits(feed[earlier.name].shape, earlier.shape, sizes)
        names = {dim.name for dim in spec.shape if isinstance(dim, Dim)}
        return {name: size for name, size in sizes.items() if name in names}

    def zeros(self) -> dict[str, Array]:
        """A feed of zeros at the sizes that the dims are tuned for."""
        return {
            spec.name: np.zeros(
                [dim if isinstance(dim, int) else dim.opt or dim.min for dim in spec.shape],
                spec.dtype,
            )
            for spec in self.inputs
        }


def digest_of(feeds: Iterable[Mapping[str, Array]]) -> str:
    """SHA-256 (hex) over names, dtypes, shapes and values."""
    digest = hashlib.sha256()
    for feed in feeds:
        for name, array in feed.items():
            digest.update(f"{name} {array.dtype} {array.shape} ".encode())
            digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def fits(shape: tuple[int, ...], expected: tuple[int | Dim, ...], sizes: dict[str, int]) -> bool:
    """Whether the shape fits; a named dim has one size in the whole feed (kept in `sizes`)."""
    if len(shape) != len(expected):
        return False
    for size, dim in zip(shape, expected, strict=True):
        if isinstance(dim, int):
            if size != dim:
                return False
        elif size not in dim or sizes.setdefault(dim.name, size) != size:
            return False
    return True


def _explain(spec: TensorSpec, array: Array | None, bound: dict[str, int]) -> InputError:
    """The error for the one input that does not fit."""
    if array is None:
        return InputError(
            f"The input {spec.name!r} is missing.",
            expected=str(spec),
            fix=f"pass {{{spec.name!r}: array}}",
        )
    if not isinstance(array, np.ndarray):
        return InputError(
            f"The input {spec.name!r} is not a NumPy array.",
            expected=str(spec),
            got=type(array).__name__,
            fix="convert it, for example with numpy.asarray(x, dtype=...)",
        )
    also = f" with {bound} from the other inputs" if bound else ""
    wrong_dtype = array.dtype != spec.dtype
    return InputError(
        f"The input {spec.name!r} has the wrong {'dtype' if wrong_dtype else 'shape'}.",
        expected=f"{spec}{also}",
        got=f"{array.dtype}[{', '.join(map(str, array.shape))}]",
        fix=f"convert it explicitly: x.astype({spec.dtype!r})"
        if wrong_dtype
        else "change the shape, or compile with dynamic={name: {axis: sdk.Dim(...)}}",
    )
