"""MIL programs written by hand: built, saved, read back and evaluated in one step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

OPSET = "iOS18"


@dataclass(frozen=True)
class Row:
    """One use of an operator: `build` makes it with the builder, `want` says it in torch."""

    name: str
    build: Callable[..., Any]
    want: Callable[..., Any]
    inputs: tuple[Tensor, ...]

    def __str__(self) -> str:
        return self.name


def draw(*shape: int, seed: int = 0) -> Tensor:
    """Normally distributed numbers, always the same."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def whole(*values: int) -> Tensor:
    """A vector of int32."""
    return torch.tensor(values, dtype=torch.int32)


def write(
    build: Callable[[Any, list[Any]], Any],
    inputs: Sequence[Tensor],
    package: Path,
    opset: str = OPSET,
) -> Path:
    """Save a program of what `build(mb, variables)` returns, untouched by any pass."""
    from sdk.compilers.mil.frontend import coremltools, hushed

    ct, mil = coremltools(), coremltools("coremltools.converters.mil.mil")
    mb, version = mil.Builder, getattr(ct.target, opset)
    with hushed():
        dtypes = {torch.float32: mil.types.fp32, torch.int32: mil.types.int32}
        ports = {
            f"in{i}": mb.placeholder(tuple(x.shape), dtype=dtypes[x.dtype])
            for i, x in enumerate(inputs)
        }
        program = mil.Program()
        with mil.Function(ports, opset_version=version) as function:
            made = build(mb, list(function.inputs.values()))
            function.set_outputs([_presentable(mb, mil.types, var) for var in _flat(made)])
        program.add_function("main", function)
        model = ct.convert(
            program,
            convert_to="mlprogram",
            minimum_deployment_target=version,
            compute_precision=ct.precision.FLOAT32,
            pass_pipeline=ct.PassPipeline.EMPTY,
            skip_model_load=True,
        )
        model.save(str(package))
    return package


def evaluate(
    build: Callable[[Any, list[Any]], Any],
    inputs: Sequence[Tensor],
    package: Path,
    opset: str = OPSET,
) -> list[Tensor]:
    """The outputs of a program, from its saved file."""
    from sdk.compilers.mil.evaluator import read_package

    graph = read_package(write(build, inputs, package, opset))
    feed = {f"in{i}": x for i, x in enumerate(inputs)}
    return graph.evaluate(feed, graph.new_states())


def evaluate_rows(rows: Sequence[Row], package: Path) -> dict[str, list[Tensor]]:
    """All rows in one program: the results of each."""
    counts: dict[str, int] = {}

    def build(mb: Any, variables: list[Any]) -> list[Any]:
        results, rest = [], variables
        for row in rows:
            own, rest = rest[: len(row.inputs)], rest[len(row.inputs) :]
            made = _flat(row.build(mb, *own))
            counts[row.name] = len(made)
            results += made
        return results

    values = evaluate(build, [x for row in rows for x in row.inputs], package)
    found = {}
    for row in rows:
        found[row.name], values = values[: counts[row.name]], values[counts[row.name] :]
    return found


def _flat(made: Any) -> list[Any]:
    return list(made) if isinstance(made, (list, tuple)) else [made]


def _presentable(mb: Any, types: Any, var: Any) -> Any:
    """Outputs are floats or int32."""
    if var.dtype in (types.fp32, types.int32):
        return mb.identity(x=var)
    return mb.cast(x=var, dtype="fp32" if types.is_float(var.dtype) else "int32")


def same(got: Sequence[Tensor], want: Any, tolerance: float = 1e-5) -> bool:
    """Equal shapes, and values within the tolerance."""
    wanted = list(want) if isinstance(want, (list, tuple)) else [want]
    return len(got) == len(wanted) and all(
        a.shape == b.shape and torch.allclose(a.double(), b.double(), tolerance, tolerance)
        for a, b in zip(got, wanted, strict=True)
    )
