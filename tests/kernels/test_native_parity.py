"""Native code against its reference: every kernel, instruction set, case and layout of memory."""

from __future__ import annotations

import pytest
from kernel_rows import ROWS, Row, differences, native_with, run_native, truth

from sdk.kernels.library import ISAS


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_native_code_computes_the_reference(row: Row, isa: str) -> None:
    library = native_with(row.name)
    if isa not in library.isas:
        pytest.skip(f"this processor has no {isa}")
    spec = row.load()
    assert library.versions[row.name] == spec.version
    wrong: list[str] = []
    with library.capped(isa), library.pool(2) as pool:
        assert library.isa == isa
        for case in row.cases():
            got = run_native(library, spec, case, pool)
            wrong += differences(spec, case, got, truth(spec, case))
    assert not wrong, "\n".join(wrong)
