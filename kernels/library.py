"""The native library: found or built, its table read, its kernels called on arrays.

Engines call kernels through their bindings. The calls from here are for tests and benchmarks: on
NumPy arrays, or on torch tensors of the CPU, with a pool of threads of the library's own.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from sdk.errors import EngineError, InputError, KernelMissingError
from sdk.extras import require
from sdk.kernels.building import HERE, LIBRARY, ONLY, built, is_built
from sdk.kernels.cmake import FIX, missing_tools
from sdk.kernels.interface import (
    ABI_VERSION,
    DTYPES,
    MAX_RANK,
    NONE,
    CKernel,
    CPool,
    CTensor,
    values_of,
)
from sdk.kernels.registry import users_folders

ISAS = ("portable", "neon", "avx2", "avx512", "amx")
ISA = "EDGE_ISA"
Value = int | float | bool


class Library:
    """A loaded library of kernels."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._c = ctypes.CDLL(str(path))
            version = int(self._c.edge_abi_version())
        except (OSError, AttributeError) as error:
            raise KernelMissingError(
                "The library of kernels cannot be loaded.", got=f"{path}: {error}"
            ) from error
        if version != ABI_VERSION:
            raise KernelMissingError(
                "The library of kernels has another interface.",
                expected=f"version {ABI_VERSION}",
                got=f"version {version}: {path}",
                fix="install edge-sdk again, so that the library is built from its own sources",
            )
        self._declare()
        self.kernels = self._table()

    def _declare(self) -> None:
        c = self._c
        c.edge_kernels.restype = ctypes.POINTER(ctypes.POINTER(CKernel))
        c.edge_kernels.argtypes = [ctypes.POINTER(ctypes.c_int32)]
        c.edge_isa.restype = c.edge_isa_best.restype = ctypes.c_char_p
        c.edge_isa_reload.restype = None
        c.edge_pool_new.restype = ctypes.POINTER(CPool)
        c.edge_pool_new.argtypes = [ctypes.c_int32]
        c.edge_pool_free.restype = None
        c.edge_pool_free.argtypes = [ctypes.POINTER(CPool)]

    def _table(self) -> dict[str, CKernel]:
        count = ctypes.c_int32()
        table = self._c.edge_kernels(ctypes.byref(count))
        rows = [table[i].contents for i in range(count.value)]
        return {row.name.decode(): row for row in rows}

    def function(self, name: str, arguments: Sequence[Any], result: Any) -> Any:
        """A plain C function that a kernel's header declares, with its ctypes."""
        found = getattr(self._c, name, None)
        if found is None:
            raise KernelMissingError(f"The library has no function {name!r}.", got=str(self.path))
        found.argtypes, found.restype = list(arguments), result
        return found

    @property
    def versions(self) -> dict[str, int]:
        """Version of each kernel by its name without the domain."""
        return {name: int(row.version) for name, row in self.kernels.items()}

    @property
    def isa(self) -> str:
        """The instruction set in use."""
        return str(self._c.edge_isa().decode())

    @property
    def isas(self) -> tuple[str, ...]:
        """All instruction sets that this machine runs."""
        best = str(self._c.edge_isa_best().decode())
        levels = ISAS[: ISAS.index(best) + 1]
        return levels if best == "neon" else tuple(level for level in levels if level != "neon")

    @contextmanager
    def capped(self, isa: str) -> Iterator[None]:
        """At most `isa` in here, by the environment variable EDGE_ISA."""
        if isa not in ISAS:
            raise InputError("There is no such instruction set.", expected=ISAS, got=isa)
        before = os.environ.get(ISA)
        os.environ[ISA] = isa
        self._c.edge_isa_reload()
        try:
            yield
        finally:
            if before is None:
                del os.environ[ISA]
            else:
                os.environ[ISA] = before
            self._c.edge_isa_reload()

    @contextmanager
    def pool(self, threads: int) -> Iterator[Any]:
        """A pool of the library's own threads, to pass to `call`."""
        pool = self._c.edge_pool_new(threads)
        if not pool:
            raise EngineError("There are no more threads.", got=threads)
        try:
            yield pool
        finally:
            self._c.edge_pool_free(pool)

    def call(
        self,
        name: str,
        tensors: Sequence[Any],
        attributes: Sequence[Value] = (),
        *,
        pool: Any = None,
        outputs: Sequence[Any] | None = None,
    ) -> list[Any]:
        """Run a kernel; `tensors` may have any strides, None is one that is left out.

        Attributes are in the order of the specification (`KernelSpec.bound`). Outputs are arrays,
        or torch tensors where an input is one; those given are filled and must be dense.
        EngineError has the kernel's own message.
        """
        call = self.prepare(name, tensors, attributes, pool=pool, outputs=outputs)
        call()
        return call.outputs

    def prepare(
        self,
        name: str,
        tensors: Sequence[Any],
        attributes: Sequence[Value] = (),
        *,
        pool: Any = None,
        outputs: Sequence[Any] | None = None,
    ) -> Call:
        """`call` with all but the run done: for benchmarks, which time `prepared()`."""
        row = self.kernels.get(name)
        if row is None:
            raise KernelMissingError(
                f"The library has no kernel {name!r}.", expected=sorted(self.kernels), got=name
            )
        return Call(row, tensors, attributes, pool, outputs)


class Call:
    """A kernel with its arguments; calling it runs it and fills `outputs`."""

    def __init__(
        self,
        row: CKernel,
        tensors: Sequence[Any],
        attributes: Sequence[Value],
        pool: Any,
        outputs: Sequence[Any] | None,
    ) -> None:
        self._row, self._tensors, self._pool = row, list(tensors), pool
        if not row.min_inputs <= len(tensors) <= row.max_inputs:
            raise InputError(
                f"{row.name.decode()} was called with another number of tensors.",
                expected=f"{row.min_inputs} to {row.max_inputs}",
                got=len(tensors),
            )
        if any(tensor is None for tensor in tensors[: row.min_inputs]):
            raise InputError(
                f"{row.name.decode()} was called without a tensor that it needs.",
                expected=f"the first {row.min_inputs}",
                got=[tensor is not None for tensor in tensors],
            )
        self._inputs = (CTensor * max(len(tensors), 1))(*map(_described, tensors))
        self._values = _values(row, attributes)
        self._results = (CTensor * row.outputs)()
        self._check(row.shape(self._inputs, len(tensors), self._values, self._results))
        like_torch = any(hasattr(tensor, "data_ptr") for tensor in tensors)
        self.outputs = (
            [_empty(result, like_torch) for result in self._results]
            if outputs is None
            else [_checked(given, want) for given, want in zip(outputs, self._results, strict=True)]
        )
        for result, output in zip(self._results, self.outputs, strict=True):
            found = _described(output)
            result.data, result.strides = found.data, found.strides

    def __call__(self) -> None:
        self._check(
            self._row.run(self._pool, self._inputs, len(self._tensors), self._values, self._results)
        )

    def _check(self, message: bytes | None) -> None:
        if message is not None:
            raise EngineError(
                f"The kernel {self._row.name.decode()} refuses.", got=message.decode()
            )


def library() -> Library:
    """The library that belongs to this installation.

    A checkout's is built first, and so is one with kernels of users (`EDGE_KERNELS_PATH`).
    KernelMissingError where there is none and no compiler.
    """
    return _library(users_folders(), os.environ.get(ONLY))


def found_library() -> tuple[Library | None, str]:
    """The library, and where there is none the reason."""
    try:
        return library(), ""
    except KernelMissingError as error:
        return None, f"{error.what} {error.got or ''}".strip()


def library_digest() -> str:
    """SHA-256 (hex) of the library's file; empty where there is none."""
    found, _ = found_library()
    return "" if found is None else hashlib.sha256(found.path.read_bytes()).hexdigest()


@cache
def _library(folders: tuple[Path, ...], only: str | None) -> Library:
    packaged = HERE / LIBRARY
    if packaged.is_file() and not folders and only is None:
        return Library(packaged)
    if missing := missing_tools():
        raise KernelMissingError(
            "This installation has no native kernels, and they cannot be built here.",
            got=f"no {' and no '.join(missing)}",
            fix=FIX,
        )
    return Library(built(extra=folders))


@cache
def at_hand() -> Library | None:
    """`library()`, if that takes no build."""
    folders = users_folders()
    packaged = (HERE / LIBRARY).is_file() and not folders and os.environ.get(ONLY) is None
    return library() if packaged or is_built(folders) else None


def _described(tensor: Any) -> CTensor:
    """Pointer, shape, strides in elements and dtype of an array or a torch tensor."""
    if tensor is None:
        return CTensor(dtype=NONE)
    if hasattr(tensor, "data_ptr"):
        address, dtype = tensor.data_ptr(), str(tensor.dtype).removeprefix("torch.")
        strides = tensor.stride()
    else:
        address, dtype = tensor.ctypes.data, tensor.dtype.name
        strides = [step // tensor.itemsize for step in tensor.strides]
    if dtype not in DTYPES or len(tensor.shape) > MAX_RANK:
        raise InputError(
            "A kernel does not take this tensor.",
            expected=f"{', '.join(DTYPES)}, at most {MAX_RANK} axes",
            got=f"{dtype}{list(tensor.shape)}",
        )
    found = CTensor(data=address, rank=len(tensor.shape), dtype=DTYPES.index(dtype))
    found.shape[: found.rank] = list(tensor.shape)
    found.strides[: found.rank] = list(strides)
    return found


def _values(row: CKernel, attributes: Sequence[Value]) -> Any:
    kinds: list[bool] = []
    while row.attributes and row.attributes[len(kinds)].name is not None:
        kinds.append(bool(row.attributes[len(kinds)].is_number))
    if len(kinds) != len(attributes):
        raise InputError(
            f"{row.name.decode()} was called with another number of attributes.",
            expected=len(kinds),
            got=list(attributes),
        )
    return values_of(kinds, attributes)


def _empty(result: CTensor, like_torch: bool) -> Any:
    shape, dtype = tuple(result.shape[: result.rank]), DTYPES[result.dtype]
    if not like_torch:
        return np.empty(shape, dtype)
    torch = require("torch", purpose="kernels on torch tensors")
    return torch.empty(shape, dtype=getattr(torch, dtype))


def _checked(output: Any, result: CTensor) -> Any:
    """`output`, if the kernel may fill it: shape and dtype as announced, dense."""
    found = _described(output)
    want = [result.dtype, *result.shape[: result.rank]]
    expected, dense = 1, True
    for axis in reversed(range(found.rank)):
        dense = dense and (found.shape[axis] == 1 or found.strides[axis] == expected)
        expected *= found.shape[axis]
    # of nothing, torch and NumPy write down other strides
    if [found.dtype, *found.shape[: found.rank]] != want or not (dense or expected == 0):
        raise InputError(
            "An output buffer does not fit.",
            expected=f"dense {DTYPES[result.dtype]}{list(result.shape[: result.rank])}",
            got=f"{DTYPES[found.dtype]}{list(found.shape[: found.rank])}",
        )
    return output
