"""Code for AMX on processors that have none, its tile instructions made by plain C++."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from kernel_rows import ROWS, Row, differences, native, run_native, truth

from sdk.kernels.building import HERE, built
from sdk.kernels.library import Library

TILES = Path(__file__).with_name("tiles_in_c.h")
ROWS_WITH_AMX = [row for row in ROWS if (HERE / row.name / "cpu_amx.cc").is_file()]

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("row", ROWS_WITH_AMX, ids=lambda row: row.name)
def test_tiles_compute_the_reference(
    row: Row, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "avx512" not in native().isas:
        pytest.skip("this processor has no avx512, which code for AMX also uses")
    root = tmp_path / "kernels"
    for name in ("native", "bindings", row.name):
        shutil.copytree(HERE / name, root / name)
    shutil.copy(HERE / "CMakeLists.txt", root)
    source = root / row.name / "cpu.cc"
    text = source.read_text()
    plain, tiles = (f"case Isa::avx512: return {row.name}_{isa};" for isa in ("avx512", "amx"))
    assert plain in text
    source.write_text(text.replace(plain, tiles))
    monkeypatch.setenv("CXXFLAGS", f"-include {TILES}")
    library = Library(built(root=root, folder=tmp_path))
    wrong: list[str] = []
    with library.capped("avx512"), library.pool(2) as pool:
        for case in row.cases():
            got = run_native(library, row.load(), case, pool)
            wrong += differences(row.load(), case, got, truth(row.load(), case))
    assert not wrong, "\n".join(wrong)
