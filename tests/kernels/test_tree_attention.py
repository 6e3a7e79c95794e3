"""What the parity rows of `edge::tree_attention` do not say: cuts, threads, memory, refusals."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from kernel_rows import native_with, run_native
from torch import Tensor

from sdk.errors import EngineError
from sdk.kernels.library import Library
from sdk.kernels.registry import spec_of
from sdk.kernels.spec import Case
from sdk.kernels.tree_attention.spec import SIZES, Sizes, _case

MEGABYTE = 1 << 20
DTYPES = (torch.float32, torch.bfloat16, torch.int8)


@pytest.fixture
def library() -> Library:
    return native_with("tree_attention")


def case_of(sizes: Sizes, **attributes: float) -> Case:
    return _case(np.random.default_rng(3), "case", sizes, **attributes)  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_cuts_into_passes_change_nothing(library: Library, dtype: torch.dtype) -> None:
    """Six tokens at once, or one by one with their rows put into the cache between."""
    spec, width = spec_of("tree_attention"), 6
    case = case_of(Sizes(width, 4, 2, 32, 32, 40, 20, 32, dtype), window=9)
    tensors = list(case.tensors)
    tensors[6], tensors[7] = torch.arange(20, 20 + width), torch.ones(width, width).tril().bool()
    whole = library.call(spec.short, tensors, spec.bound(case.attributes))
    for token in range(width):
        part = [t if t is None else t.clone() for t in tensors]
        for axis in (0, 1, 2, 6, 8, 9):
            part[axis] = tensors[axis][token : token + 1]  # type: ignore[index]
        part[5], part[7] = torch.tensor([20 + token]), torch.ones(1, 1, dtype=torch.bool)
        output, *rows = library.call(spec.short, part, spec.bound(case.attributes))
        torch.testing.assert_close(output[0], whole[0][token], rtol=2e-5, atol=2e-6)
        for axis, made, at_once in zip((3, 4, 10, 11), rows, whole[1:], strict=True):
            assert torch.equal(made[:, 0], at_once[:, token])
            if axis < len(tensors):
                tensors[axis] = tensors[axis].clone()  # type: ignore[union-attr]
                tensors[axis][:, 20 + token] = made[:, 0]  # type: ignore[index]


@pytest.mark.parametrize("threads", [1, 2, 3, 5])
def test_threads_change_nothing_to_speak_of(library: Library, threads: int) -> None:
    spec = spec_of("tree_attention")
    case = case_of(Sizes(4, 6, 3, 64, 64, 3000, 2900, 64))
    alone = library.call(spec.short, case.tensors, spec.bound(case.attributes))
    with library.pool(threads) as pool:
        for want, got in zip(alone, run_native(library, spec, case, pool), strict=True):
            torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)


def peak() -> int:
    """The most memory that the process has had since it was last set back, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def set_back() -> None:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pytest.skip("this system does not let a process set its counter of memory back")


def big() -> list[Tensor]:
    """Two caches of 64 MiB that are touched, and inputs of eight tokens."""
    case = case_of(Sizes(8, 8, 4, 64, 64, 65536, 40000, 64))
    return [t for t in case.tensors if t is not None]


def test_the_cache_is_not_copied(library: Library) -> None:
    spec, tensors = spec_of("tree_attention"), big()
    before = tensors[3].clone()
    with library.pool(2) as pool:
        call = library.prepare(spec.short, tensors, spec.bound({}), pool=pool)
        set_back()
        start = peak()
        call()
        assert peak() - start < 8 * MEGABYTE
    same = torch.equal(torch.nan_to_num(before), torch.nan_to_num(tensors[3]))
    assert same, "the cache was written"


def test_onnxruntime_does_not_copy_it_either(library: Library) -> None:
    spec, tensors = spec_of("tree_attention"), big()
    names = [p.name for p in spec.tensors][: len(tensors)]
    kinds = {torch.float32: 1, torch.int64: 7, torch.bool: 9}
    helper = onnx.helper
    inputs = [
        helper.make_tensor_value_info(n, kinds[t.dtype], t.shape)
        for n, t in zip(names, tensors, strict=True)
    ]
    outputs = [helper.make_tensor_value_info(f"y{i}", 1, None) for i in range(spec.outputs)]
    node = helper.make_node("tree_attention", names, [o.name for o in outputs], domain="edge",
                            scale=0.125, softcap=0.0, window=0)  # fmt: skip
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("edge", 1)]
    graph = helper.make_graph([node], "g", inputs, outputs)
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.register_custom_ops_library(str(library.path))
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    binding = session.io_binding()
    for name, t in zip(names, tensors, strict=True):
        binding.bind_input(name, "cpu", 0, kinds[t.dtype], tuple(t.shape), t.data_ptr())
    for value in outputs:
        binding.bind_output(value.name, "cpu")
    set_back()
    start = peak()
    session.run_with_iobinding(binding)
    assert peak() - start < 8 * MEGABYTE


@pytest.mark.parametrize(
    ("axis", "tensor", "message"),
    [
        (5, torch.tensor([201]), "within 0 and the cache's capacity"),
        (5, torch.tensor([-1]), "within 0 and the cache's capacity"),
        (5, torch.tensor([3.0]), "length is one int64"),
        (0, torch.zeros(1, 5, 64), "a multiple of heads of keys"),
        (0, torch.zeros(1, 4, 32), "of as many tokens"),
        (3, torch.zeros(2, 200, 64, dtype=torch.float16), "float32, bfloat16 or int8"),
        (3, torch.zeros(2, 200, 64, dtype=torch.int8), "past_value is"),
        (4, torch.zeros(2, 199, 64), "past_value is"),
        (6, torch.zeros(2, dtype=torch.int64), "positions is int64"),
        (7, torch.zeros(1, 2, dtype=torch.bool), "mask is bool"),
        (8, torch.zeros(1, 65), "cos and sin are float32"),
        (9, None, "cos and sin come together"),
    ],
)
def test_what_does_not_fit_is_refused(
    library: Library, axis: int, tensor: Tensor | None, message: str
) -> None:
    case, spec = case_of(SIZES["one token"]), spec_of("tree_attention")
    tensors = list(case.tensors)
    tensors[axis] = tensor
    with pytest.raises(EngineError, match=message):
        library.call(spec.short, tensors, spec.bound(case.attributes))
