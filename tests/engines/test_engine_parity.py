"""Every case on every engine: compile, open, run on inputs not seen before, compare."""

from __future__ import annotations

from collections.abc import Iterator

import engines
import pytest
from cases import CASE_NAMES, CASES, Case
from engines import NAMES, ROWS, Engine
from programs import Lowering

from sdk.checking import open_build
from sdk.parity import FIDELITY, TOLERANCE, compare
from sdk.target import Availability

FRESH = (1, 2, 3, 7)


def _rows() -> Iterator[object]:
    """By case, so that the engines share its program."""
    for case in CASES:
        for row in (row for row in ROWS if not row.only or case.name in row.only):
            reason = row.xfail.get(case.name)
            marks = [pytest.mark.xfail(reason=reason)] if reason else []
            # QNN compiles in a process of its own
            if row.target.device == "npu" or (row.quick and case.name not in row.quick):
                marks.append(pytest.mark.slow)
            yield pytest.param(case, row, id=f"{case}-{row}", marks=marks)


@pytest.fixture(scope="module")
def lowering(tmp_path_factory: pytest.TempPathFactory) -> Lowering:
    return Lowering(tmp_path_factory.mktemp("lowered"))


@pytest.mark.parametrize(("case", "row"), list(_rows()))
def test_computes_what_the_model_computes(case: Case, row: Engine, lowering: Lowering) -> None:
    from sdk.compilers.capture import example_feed

    row.require()
    program, build = lowering(case, row.target)
    fp32, model = program.base or program, case.model()
    session = open_build(build, program, row.target, threads=1)
    try:
        for index in FRESH:
            feed = example_feed(model, case.inputs(index)) or {}
            program.signature.check(feed)
            got = session.run(feed)
            precision = row.target.precision
            parity = compare(got, program.reference(feed), TOLERANCE[precision])
            assert parity.ok, f"against {precision} in PyTorch: {parity}"
            fidelity = compare(got, fp32.reference(feed), FIDELITY[precision])
            assert fidelity.ok, f"against the model: {fidelity}"
            assert list(got) == [spec.name for spec in program.signature.outputs]
    finally:
        session.close()


def test_missing_engine_is_skipped_or_fails_where_it_is_required(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    absent = Availability(reason="it is not installed")
    monkeypatch.setattr(engines, "probe", lambda _: absent)
    monkeypatch.setattr(engines, "REQUIRED", ())
    row = engines.row("openvino:cpu:int8")
    with pytest.raises(pytest.skip.Exception, match="it is not installed"):
        row.require()
    for required in ("openvino", "openvino:cpu:int8"):
        monkeypatch.setattr(engines, "REQUIRED", ("onnxruntime", required))
        with pytest.raises(pytest.fail.Exception, match="it is not installed"):
            row.require()


def test_no_row_is_lost() -> None:
    assert tuple(str(row) for row in ROWS) == NAMES
    assert tuple(case.name for case in CASES) == CASE_NAMES
    unknown = {name for row in ROWS for name in (*row.xfail, *row.only)} - set(CASE_NAMES)
    assert not unknown, f"rows name unknown cases: {unknown}"
