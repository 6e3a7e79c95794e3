"""The library as a whole: adding a kernel, other versions, instruction sets, what is refused."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from kernel_rows import EXAMPLES, ROWS, differences, native, run_native, truth

import sdk
from sdk.kernels import library as module
from sdk.kernels.building import HERE, built
from sdk.kernels.cmake import missing_tools
from sdk.kernels.library import Library
from sdk.kernels.registry import spec_in, spec_of
from sdk.kernels.spec import Case, Tolerance, kernel

pytestmark = pytest.mark.skipif(bool(missing_tools()), reason="no compiler")
X = np.arange(6, dtype=np.float32).reshape(2, 3)
SKELETON = ("CMakeLists.txt", "native", "bindings")


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder `kernels` of a repository with the example for its only kernel."""
    root = tmp_path_factory.mktemp("repository") / "kernels"
    root.mkdir()
    for name in SKELETON:
        source = HERE / name
        if source.is_dir():
            shutil.copytree(source, root / name)
        else:
            shutil.copy(source, root / name)
    shutil.copytree(EXAMPLES / "scale_add", root / "scale_add")
    return root


@pytest.fixture(autouse=True)
def _all_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EDGE_KERNELS_ONLY", raising=False)


def test_adding_a_kernel_touches_one_folder(tree: Path, tmp_path: Path) -> None:
    """The example's folder alone, with a tree that names it nowhere, builds, runs and is right."""
    named = [p for p in tree.rglob("*") if p.is_file() and "scale_add" not in p.parts]
    assert not [p for p in named if "scale_add" in p.read_text()]
    library = Library(built(root=tree, folder=tmp_path))
    assert library.versions == {"scale_add": 1}
    spec = spec_in(tree / "scale_add")
    wrong = []
    with library.pool(2) as pool:
        for case in spec.sample(np.random.default_rng(0)):
            got = run_native(library, spec, case, pool)
            wrong += differences(spec, case, got, truth(spec, case))
    assert not wrong


def test_two_versions_side_by_side(tree: Path, tmp_path: Path) -> None:
    """Each keeps to its own code and state, though all their symbols have the same names."""
    first = Library(built(root=tree, folder=tmp_path / "first"))
    source = tree / "scale_add" / "cpu.cc"
    text = source.read_text()
    changed = text.replace('"scale_add", 1,', '"scale_add", 2,').replace(
        "out[i] = x[i] + alpha * y[i];", "out[i] = x[i] - alpha * y[i];"
    )
    source.write_text(changed)
    try:
        second = Library(built(root=tree, folder=tmp_path / "second"))
    finally:
        source.write_text(text)
    assert (first.versions, second.versions) == ({"scale_add": 1}, {"scale_add": 2})
    with first.capped("portable"):
        second._c.edge_isa_reload()
        assert second.isa == "portable"
        (plus,) = first.call("scale_add", [X, X], [1.0])
        (minus,) = second.call("scale_add", [X, X], [1.0])
    np.testing.assert_array_equal(plus, 2 * X)
    np.testing.assert_array_equal(minus, 0 * X)


def test_another_interface_is_refused(tree: Path, tmp_path: Path) -> None:
    header = tree / "native" / "edge.h"
    text = header.read_text()
    header.write_text(text.replace("EDGE_ABI_VERSION 1", "EDGE_ABI_VERSION 999"))
    try:
        path = built(root=tree, folder=tmp_path)
    finally:
        header.write_text(text)
    with pytest.raises(sdk.KernelMissingError, match="another interface") as caught:
        Library(path)
    assert "version 999" in str(caught.value)


def test_memory_that_runs_out_on_a_thread_is_an_error(tree: Path, tmp_path: Path) -> None:
    source = tree / "scale_add" / "cpu.cc"
    text = source.read_text()
    greedy = "static thread_local Scratch all; all.get<char>(SIZE_MAX / 4); if (simple)"
    changed = text.replace('#include "pool.h"', '#include "pool.h"\n#include "scratch.h"')
    changed = changed.replace("edge::scale_add::run,", "edge::guarded<edge::scale_add::run>,")
    source.write_text(changed.replace("if (simple)", greedy))
    try:
        library = Library(built(root=tree, folder=tmp_path))
    finally:
        source.write_text(text)
    x = np.zeros(64, np.float32)
    with library.pool(2) as pool, pytest.raises(sdk.EngineError, match="out of memory"):
        library.call("scale_add", [x, x], [1.0], pool=pool)
    with pytest.raises(sdk.EngineError, match="out of memory"):
        library.call("scale_add", [x, x], [1.0])


def test_more_memory_than_there_is_is_refused() -> None:
    """All of it one element, so that only what the kernel copies is large."""
    depth = 1 << 50
    x = torch.zeros(1).expand(1, depth)
    weight = torch.zeros(1, dtype=torch.uint8).expand(1, 8 * depth)
    scales = torch.zeros(1).expand(1, depth // 128, 16)
    with pytest.raises(sdk.EngineError, match="out of memory"):
        native().call("linear_nbits", [x, weight, scales, None, None], [16, 4, 128])


@pytest.mark.slow
def test_code_for_an_instruction_set_stays_in_its_file(tmp_path: Path) -> None:
    """What other files may call besides is weak: the linker could take it for any processor's."""
    tool = shutil.which("nm")
    if tool is None:
        pytest.skip("no nm")
    built(folder=tmp_path)
    objects = sorted(map(str, tmp_path.rglob("*/cpu_*.o")))
    assert objects
    said = subprocess.run([tool, "-A", "-C", *objects], capture_output=True, text=True, check=True)
    assert [line for line in said.stdout.splitlines() if re.search(r" [VWu] ", line)] == []


def test_what_is_no_library_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "libedge_kernels.so"
    file.write_bytes(b"\x7fELF" + bytes(100))
    with pytest.raises(sdk.KernelMissingError, match="cannot be loaded"):
        Library(file)


def test_a_source_that_does_not_compile_is_named(tree: Path, tmp_path: Path) -> None:
    broken = tree / "broken"
    shutil.copytree(tree / "scale_add", broken)
    (broken / "cpu.cc").write_text("this is no C++\n")
    try:
        with pytest.raises(sdk.EngineError, match=r"broken/cpu\.cc:1:1: error"):
            built(root=tree, folder=tmp_path)
    finally:
        shutil.rmtree(broken)


def test_a_machine_without_avx2(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment alone: as on a processor that has none of the instruction sets."""
    monkeypatch.setenv("EDGE_ISA", "portable")
    library = native()
    library._c.edge_isa_reload()
    try:
        assert library.isa == "portable"
        (got,) = library.call("scale_add", [X, X], [0.5])
    finally:
        monkeypatch.delenv("EDGE_ISA")
        library._c.edge_isa_reload()
    np.testing.assert_array_equal(got, 1.5 * X)
    assert library.isa == library.isas[-1]


def test_an_instruction_set_that_does_not_exist() -> None:
    with pytest.raises(sdk.InputError, match="no such instruction set"), native().capped("mmx"):
        pass


@pytest.mark.parametrize(
    ("tensors", "attributes", "message"),
    [
        ([], [1.0], "number of tensors"),
        ([X, X, X], [1.0], "number of tensors"),
        ([None, X], [1.0], "without a tensor that it needs"),
        ([X, X], [], "number of attributes"),
        ([X.astype(np.complex64)], [1.0], "does not take this tensor"),
        ([np.zeros((1,) * 9, np.float32)], [1.0], "does not take this tensor"),
    ],
)
def test_bad_calls(tensors: list[np.ndarray], attributes: list[float], message: str) -> None:
    with pytest.raises(sdk.InputError, match=message):
        native().call("scale_add", tensors, attributes)


def test_the_kernels_own_refusal_is_passed_on() -> None:
    with pytest.raises(sdk.EngineError, match="y must have the shape of x"):
        native().call("scale_add", [X, X[:1]], [1.0])
    with pytest.raises(sdk.KernelMissingError, match="no kernel 'nothing'"):
        native().call("nothing", [X])


@pytest.mark.parametrize("output", [np.empty((2, 3)), np.empty((3, 2), np.float32).T[:, :]])
def test_output_buffers_that_do_not_fit(output: np.ndarray) -> None:
    with pytest.raises(sdk.InputError, match="output buffer does not fit"):
        native().call("scale_add", [X, X], [1.0], outputs=[output])


def test_many_threads_call_one_pool() -> None:
    """More tasks than threads, many times over: none is lost and none runs twice."""
    x = torch.ones(10_000)
    with native().pool(4) as pool:
        call = native().prepare("scale_add", [x, x], [1.0], pool=pool)
        for _ in range(200):
            call.outputs[0].zero_()
            call()
            assert bool((call.outputs[0] == 2).all())


def test_what_a_kernel_may_be() -> None:
    def sample(_: np.random.Generator) -> list[Case]:
        return []

    settings = {"version": 1, "sample": sample, "tolerance": Tolerance(0, 0)}

    def good(x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    def texts(x: torch.Tensor, mode: str) -> torch.Tensor:
        return x.clone()

    def late(alpha: float, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    def bare(x):
        return x.clone()

    for name in ("x", "edge::X", "other::x", "edge::a b"):
        with pytest.raises(sdk.InputError, match="another name"):
            kernel(name, **settings)
    with pytest.raises(sdk.InputError, match="no usable version"):
        kernel("edge::bad", **{**settings, "version": 0})
    wrong = {texts: "cannot carry: mode", late: "another order", bare: "cannot be those"}
    for function, message in wrong.items():
        with pytest.raises(sdk.InputError, match=message):
            kernel("edge::bad", **settings)(function)
    made = kernel("edge::test_only", **settings)(good)
    torch.testing.assert_close(made(torch.ones(2)), torch.ones(2))
    with pytest.raises(sdk.InputError, match="is there already"):
        kernel("edge::test_only", **settings)(lambda_with_more)


def lambda_with_more(x: torch.Tensor, alpha: float) -> torch.Tensor:
    return x * alpha


def test_gradients_are_the_references() -> None:
    spec = next(row for row in ROWS if row.name == "scale_add").load()
    x, y = (torch.randn(3, 4, dtype=torch.float64, requires_grad=True) for _ in range(2))
    torch.autograd.gradcheck(lambda a, b: spec(a, b, alpha=0.5), (x, y))


def test_a_kernel_that_is_not_there() -> None:
    with pytest.raises(sdk.InputError, match="no kernel 'nothing'"):
        spec_of("nothing")


def test_a_users_folder_wins_no_file_by_its_path(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kernels of users are built into a library of their own making, beside the packaged ones."""
    monkeypatch.setenv("EDGE_KERNELS_PATH", str(EXAMPLES))
    monkeypatch.setenv("EDGE_KERNELS_ONLY", "scale_add")
    try:
        assert module.library().versions == {"scale_add": 1}
    finally:
        module._library.cache_clear()
