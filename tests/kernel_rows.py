"""What all tests of kernels share: the kernels there are, a library of them, and the comparison."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from sdk.kernels import registry
from sdk.kernels.building import built
from sdk.kernels.cmake import missing_tools
from sdk.kernels.library import Library
from sdk.kernels.spec import Case, KernelSpec
from sdk.parity import Tolerance, compare

EXAMPLES = Path(__file__).parent / "kernels" / "example"
EXACT = Tolerance(rms=0.0, worst=0.0)
GUARD = 64
SENTINEL = 0xA5


@dataclass(frozen=True)
class Row:
    """A kernel and where its description is."""

    name: str
    load: Callable[[], KernelSpec]

    def cases(self, seed: int = 0) -> Iterator[Case]:
        """The kernel's own cases, each also with its tensors unaligned and spread out."""
        for case in self.load().sample(np.random.default_rng(seed)):
            yield case
            for name, layout in (("unaligned", unaligned), ("spread", spread)):
                tensors = tuple(None if t is None else layout(t) for t in case.tensors)
                yield replace(case, name=f"{case.name}, {name}", tensors=tensors)


ROWS = [
    *(Row(name, lambda name=name: registry.spec_of(name)) for name in registry.names()),
    *(
        Row(file.parent.name, lambda file=file: registry.spec_in(file.parent))
        for file in sorted(EXAMPLES.glob("*/spec.py"))
    ),
]


@cache
def native() -> Library:
    """The library of all kernels and of the examples; skips where there is no compiler.

    `EDGE_TEST_SANITIZE` names sanitizers to build it with; `test_sanitizers.py` runs tests so.
    """
    if missing_tools():
        pytest.skip(f"no {' and no '.join(missing_tools())}")
    return Library(built(extra=[EXAMPLES], sanitize=os.environ.get("EDGE_TEST_SANITIZE", "")))


def native_with(name: str) -> Library:
    """The library, if it has native code of this kernel."""
    library = native()
    if name not in library.kernels:
        pytest.skip(f"{name} has no native code in this build")
    return library


def unaligned(tensor: torch.Tensor) -> torch.Tensor:
    """The same values one element into a buffer."""
    buffer = _garbage(tensor.numel() + 1, tensor.dtype)
    moved = buffer[1:].view(tensor.shape)
    moved.copy_(tensor)
    return moved


def spread(tensor: torch.Tensor) -> torch.Tensor:
    """The same values, every other element of the last two axes; what lies between is garbage."""
    axes = tensor.ndim - min(tensor.ndim, 2)
    shape = [size * (2 if axis >= axes else 1) for axis, size in enumerate(tensor.shape)]
    buffer = _garbage(int(np.prod(shape, dtype=int)), tensor.dtype).view(shape)
    view = buffer[(..., *(slice(None, None, 2) for _ in range(tensor.ndim - axes)))]
    view.copy_(tensor)
    return view


def _garbage(count: int, dtype: torch.dtype) -> torch.Tensor:
    if dtype.is_floating_point:
        return torch.full((count,), float("nan"), dtype=dtype)
    return torch.full((count,), 1 if dtype is torch.bool else 113, dtype=dtype)


def truth(spec: KernelSpec, case: Case) -> list[torch.Tensor]:
    """The reference in float64."""
    wide = [t.double() if t is not None and t.is_floating_point() else t for t in case.tensors]
    outputs = spec.reference(*wide, **case.attributes)
    return list(outputs) if isinstance(outputs, tuple) else [outputs]


def run_native(library: Library, spec: KernelSpec, case: Case, pool: object) -> list[torch.Tensor]:
    """The native code, into buffers full of a sentinel; the guards around them must stay."""
    values = spec.bound(case.attributes)
    shapes = library.prepare(spec.short, case.tensors, values).outputs
    outputs, check = guarded(shapes)
    library.call(spec.short, case.tensors, values, pool=pool, outputs=outputs)
    check(case.name)
    return outputs


def guarded(
    like: Sequence[torch.Tensor],
) -> tuple[list[torch.Tensor], Callable[[str], None]]:
    """Dense buffers like these, full of a sentinel, and what fails if their surroundings change."""
    rooms = [
        torch.full((2 * GUARD + o.numel() * o.element_size(),), SENTINEL, dtype=torch.uint8)
        for o in like
    ]
    outputs = [
        room[GUARD : room.numel() - GUARD].view(o.dtype).view(o.shape)
        for room, o in zip(rooms, like, strict=True)
    ]

    def check(name: str) -> None:
        for room in rooms:
            ends = torch.cat([room[:GUARD], room[room.numel() - GUARD :]])
            assert bool((ends == SENTINEL).all()), f"{name}: written outside of an output"

    return outputs, check


def differences(
    spec: KernelSpec, case: Case, got: Sequence[torch.Tensor], want: Sequence[torch.Tensor]
) -> list[str]:
    """What is wrong with `got`: shapes, dtypes, or values out of bounds; integers are exact."""
    wrong = []
    plain = spec.reference(*case.tensors, **case.attributes)
    plain = plain if isinstance(plain, tuple) else (plain,)
    for i, (g, w, p) in enumerate(zip(got, want, plain, strict=True)):
        if (g.shape, g.dtype) != (p.shape, p.dtype):
            wrong.append(f"{case.name}: output {i} is {g.dtype} {g.shape}, not {p.dtype} {p.shape}")
            continue
        if g.numel() == 0:
            continue
        tolerance = (case.tolerance or spec.tolerance) if p.is_floating_point() else EXACT
        report = compare({"y": _array(g)}, {"y": _array(w.to(p.dtype))}, tolerance)
        if not report.ok:
            wrong.append(f"{case.name}: output {i}: {report.worst}")
    return wrong


def _array(tensor: torch.Tensor) -> np.ndarray:
    """Floats as float64, which holds all of them."""
    return (tensor.double() if tensor.is_floating_point() else tensor).detach().numpy()
