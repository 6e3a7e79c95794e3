"""Kernels in Core ML, as composites or by their plain functions: saved files in our evaluator."""

from __future__ import annotations

import gc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from kernel_models import Call
from kernel_rows import EXAMPLES, ROWS, Row, differences, truth

import sdk
from sdk.apple import FILE_DTYPE
from sdk.compilers import coreml
from sdk.compilers.capture import capture
from sdk.compilers.kernels import plan
from sdk.kernels.spec import Case, KernelSpec, Tolerance
from sdk.target import Target

TARGET = Target.parse("coreml")
# By name of the kernel: which of its tensors are weights of a model.
WEIGHTS = {
    "linear_nbits": (1, 2, 3, 4),
    "linear_fdb": (1, 2, 3),
    "group_norm_silu": (1, 2),
    "residual_vq": (1,),
    "residual_vq_decode": (1,),
}
# By kernels that have no form in Core ML: what is said.
REFUSED = {"sample_verify": "isfinite"}
FLOAT32 = Tolerance(rms=1e-5, worst=2e-5)
"""Of plain sums in float32, where the native code is held to less."""
FEW = 4
COMPOSITES = {"group_norm_silu", "linear_fdb", "linear_nbits", "scale_add"}


def usable(row: Row) -> list[Case]:
    """Cases with values, of dtypes that Core ML has, that are not their own answer."""
    weights = WEIGHTS.get(row.name, ())
    return [
        case
        for case in row.load().sample(np.random.default_rng(0))
        if all(t is None or t.numel() for t in case.tensors)
        and all(
            t is None or i in weights or str(t.dtype)[6:] in FILE_DTYPE
            for i, t in enumerate(case.tensors)
        )
        # a graph of one vertex has its length for an output
        and not (row.name == "dag_decode" and case.tensors[1].shape[1] < 2)  # type: ignore[union-attr]
    ]


def run(spec: KernelSpec, case: Case, folder: Path) -> list[torch.Tensor]:
    """A model of the kernel alone, converted, saved and evaluated."""
    model = Call(spec, case, WEIGHTS.get(spec.short, ()))
    planned = plan(capture(model.eval(), model.inputs()), TARGET)
    kind = "composite" if spec.short in COMPOSITES else "decomposed"
    assert [use.binding for use in planned.uses] == [kind]
    program = planned.program
    build = coreml.compile_program(program, TARGET, folder)
    session = coreml.open_check(build, program, TARGET, threads=1)
    names = [given.name for given in program.signature.inputs]
    feed = dict(zip(names, (t.numpy() for t in model.inputs()), strict=True))
    made = session.run(feed)
    return [torch.from_numpy(made[o.name]) for o in program.signature.outputs]


def wrong_of(row: Row, cases: list[Case], tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What is off."""
    spec = row.load()
    wrong: list[str] = []
    for case in cases:
        bound = case.tolerance or spec.tolerance
        bound = Tolerance(max(bound.rms, FLOAT32.rms), max(bound.worst, FLOAT32.worst))
        got = run(spec, case, tmp_path_factory.mktemp("model"))
        wrong += differences(spec, replace(case, tolerance=bound), got, truth(spec, case))
    return wrong


CONVERTED = [row for row in ROWS if row.name not in REFUSED]
LONG = ("dag_decode", "dag_forward")  # loops over sizes, written out: minutes for all cases


def _few() -> list[object]:
    slow = pytest.mark.slow
    marks = {row.name: slow if row.name in LONG else () for row in CONVERTED}
    return [pytest.param(row, id=row.name, marks=marks[row.name]) for row in CONVERTED]


@pytest.fixture(autouse=True)
def _examples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGE_KERNELS_PATH", str(EXAMPLES))


@pytest.mark.parametrize("row", _few())
def test_core_ml_computes_the_reference(row: Row, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Some cases, from the first to the last."""
    cases = usable(row)
    some = [cases[round(i * (len(cases) - 1) / (FEW - 1))] for i in range(FEW)]
    wrong = wrong_of(row, some, tmp_path_factory)
    assert not wrong, "\n".join(wrong)


@pytest.mark.slow
@pytest.mark.parametrize(
    "row", [row for row in CONVERTED if row.name not in LONG], ids=lambda row: row.name
)
def test_core_ml_computes_every_case(row: Row, tmp_path_factory: pytest.TempPathFactory) -> None:
    wrong = wrong_of(row, usable(row), tmp_path_factory)
    assert not wrong, "\n".join(wrong)


@pytest.mark.filterwarnings("ignore:Implicitly cleaning up:ResourceWarning")
@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_form_there_is_told(name: str, tmp_path: Path) -> None:
    row = next(row for row in ROWS if row.name == name)
    with pytest.raises(sdk.UnsupportedOperatorError, match=REFUSED[name]):
        run(row.load(), usable(row)[0], tmp_path)
    gc.collect()  # what coremltools leaves behind


@pytest.mark.parametrize(("name", "share"), [("linear_nbits", 1 / 6), ("linear_fdb", 1 / 7)])
def test_weights_stay_packed_in_the_file(name: str, share: float, tmp_path: Path) -> None:
    """Of 1,024 x 1,024: no more than this share of what floats take."""
    row = next(row for row in ROWS if row.name == name)
    spec = row.load()
    case = max(usable(row), key=lambda case: case.tensors[0].shape[-1])  # type: ignore[union-attr]
    attributes = {**case.attributes, "columns": 1024, "group": 64}
    x, generator = torch.randn(2, 1024), torch.Generator().manual_seed(0)
    bytes_of = 8 * 1024 if name == "linear_nbits" else 4 * 1024
    packed = torch.randint(0, 256, (64, bytes_of), dtype=torch.uint8, generator=generator)
    scales = torch.rand(64, 16, *([2] if name == "linear_fdb" else []), 16, generator=generator)
    if name == "linear_nbits":
        attributes["bits"] = 4
    made = Case("large", (x, packed, scales, None), attributes, Tolerance(2e-5, 2e-5))
    got = run(spec, made, tmp_path)
    assert not differences(spec, made, got, truth(spec, made))
    size = sum(f.stat().st_size for f in tmp_path.rglob("*") if f.is_file())
    assert size < share * 4 * 1024 * 1024
