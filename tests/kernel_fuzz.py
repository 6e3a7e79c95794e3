"""Calls kernels with arguments that are almost right, in a process of its own that may crash.

    python tests/kernel_fuzz.py --rounds 200 --seed 0 [name ...]

A kernel answers or refuses, and stays within its buffers: guards around the outputs are compared,
and the address sanitizer sees the rest. The call under way is written down before it is made.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import numpy as np
import torch
from kernel_rows import ROWS, Row, native, run_native, spread, unaligned

import sdk
from sdk.kernels.spec import Case

ODD_SIZES = (0, 1, 2, 3, 7, 16, 33)
ODD_NUMBERS = (-1, 0, 1, 2, 3, 5, 1 << 31, -(1 << 62), (1 << 63) - 1, -(1 << 63))
ODD_FLOATS = (0.0, -1.0, 1e-42, 3e38, float("inf"), float("nan"))
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.int8, torch.uint8, torch.int32,
          torch.int64, torch.bool, torch.float64)  # fmt: skip
BIGGEST = 1 << 22  # elements of an output; more is not tried


def fuzz(row: Row, rounds: int, seed: int) -> tuple[int, int]:
    """How many calls were answered, and how many refused."""
    library, rng = native(), np.random.default_rng(seed)
    cases = list(row.load().sample(np.random.default_rng(0)))
    found = []
    with library.pool(3) as pool:
        for _ in range(rounds):
            case = mutated(cases[rng.integers(len(cases))], rng)
            isa = str(rng.choice(library.isas))
            print(f"{row.name} ({isa}): {described(case)}", file=sys.stderr, flush=True)
            with library.capped(isa):
                found.append(answers(row, case, pool if rng.random() < 0.5 else None))
    return found.count(True), found.count(False)


def answers(row: Row, case: Case, pool: object) -> bool | None:
    """Whether the kernel takes the call; None where its outputs would be too big to try."""
    spec, library = row.load(), native()
    try:
        values = spec.bound(case.attributes)
        outputs = library.prepare(spec.short, case.tensors, values).outputs
        if sum(output.numel() for output in outputs) > BIGGEST:
            return None
        run_native(library, spec, case, pool)
    except (sdk.EdgeError, RuntimeError, MemoryError):  # torch says RuntimeError of no memory
        return False
    return True


def mutated(case: Case, rng: np.random.Generator) -> Case:
    """One or two of its arguments changed, and at times where all of them lie."""
    tensors, attributes = list(case.tensors), dict(case.attributes)
    for _ in range(rng.integers(1, 3)):
        if attributes and rng.random() < 0.3:
            name = str(rng.choice(sorted(attributes)))
            attributes[name] = _odd(attributes[name], rng)
        else:
            place = int(rng.integers(len(tensors)))
            tensors[place] = changed(tensors[place], rng)
    if rng.random() < 0.3:
        layout = (unaligned, spread)[rng.integers(2)]
        tensors = [None if tensor is None else layout(tensor) for tensor in tensors]
    return Case(case.name, tuple(tensors), attributes)


def _odd(value: float, rng: np.random.Generator) -> int | float | bool:
    if isinstance(value, bool):
        return not value
    return float(rng.choice(ODD_FLOATS)) if isinstance(value, float) else _number(rng)


def _number(rng: np.random.Generator) -> int:
    return ODD_NUMBERS[rng.integers(len(ODD_NUMBERS))]


def changed(tensor: torch.Tensor | None, rng: np.random.Generator) -> torch.Tensor | None:
    """Another shape, dtype, layout or other values; freshly allocated: its ends are known."""
    if tensor is None:
        return torch.zeros(2)
    kind = rng.integers(7)
    if kind == 0:
        return None
    if kind == 1:
        return torch.zeros(tensor.shape, dtype=DTYPES[rng.integers(len(DTYPES))])
    if kind == 2:
        return _wild(tensor.clone(), rng)
    if kind == 3 and tensor.ndim > 1:
        return tensor.transpose(-1, -2).clone()
    if kind == 4:
        return tensor.unsqueeze(0).clone() if rng.random() < 0.5 else tensor.reshape(-1).clone()
    return _resized(tensor, rng)


def _resized(tensor: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    if tensor.ndim == 0:
        return torch.zeros(3, dtype=tensor.dtype)
    axis = int(rng.integers(tensor.ndim))
    size = ODD_SIZES[rng.integers(len(ODD_SIZES))]
    shape = list(tensor.shape)
    shape[axis] = size
    made = torch.zeros(shape, dtype=tensor.dtype)
    common = min(size, tensor.shape[axis])
    made.narrow(axis, 0, common).copy_(tensor.narrow(axis, 0, common))
    return made


def _wild(tensor: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Values that no model has: indices out of range, NaN, infinities, denormals."""
    flat = tensor.view(-1) if tensor.is_contiguous() else tensor.reshape(-1)
    for _ in range(min(4, flat.numel())):
        place = int(rng.integers(flat.numel()))
        if tensor.dtype.is_floating_point:
            flat[place] = float(rng.choice(ODD_FLOATS))
        elif tensor.dtype is not torch.bool:
            limits = torch.iinfo(tensor.dtype)
            flat[place] = max(limits.min, min(_number(rng), limits.max))
    return flat.view(tensor.shape)


def described(case: Case) -> str:
    tensors = [None if t is None else (str(t.dtype)[6:], tuple(t.shape)) for t in case.tensors]
    return f"{case.name}: {tensors} {dict(case.attributes)}"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="kernels; default: all that have native code")
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    for row in ROWS:
        if row.name in native().kernels and (not given.names or row.name in given.names):
            answered, refused = fuzz(row, given.rounds, given.seed)
            print(f"{row.name}: {answered} answered, {refused} refused", flush=True)


if __name__ == "__main__":
    main()
