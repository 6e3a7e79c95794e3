"""TensorRT's quick plugins, by a stand-in for its binding: what is registered, and what is called.

It shows the order of calls and the way of the data, and nothing of TensorRT or of a GPU.
"""

from __future__ import annotations

import ctypes
import inspect
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from kernel_rows import ROWS, Row

import sdk
from sdk.compilers import tensorrt_plugins as plugins
from sdk.kernels.interface import CTensor, CValue
from sdk.kernels.spec import Case, KernelSpec, Tolerance, kernel


class Expression:
    """A size that is only known later, and what was done to it."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __add__(self, other: object) -> Expression:
        return Expression(f"({self.text} + {_text(other)})")

    def __mul__(self, other: object) -> Expression:
        return Expression(f"({self.text} * {_text(other)})")

    def __floordiv__(self, other: object) -> Expression:
        return Expression(f"({self.text} // {_text(other)})")


def _text(value: object) -> str:
    return value.text if isinstance(value, Expression) else str(value)


class TensorDesc:
    """Sizes and dtype."""

    def __init__(self, shape_expr: Any, dtype: object) -> None:
        self.shape_expr, self.dtype = shape_expr, dtype


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, Any]]:
    """A stand-in for `tensorrt` that keeps what is registered."""
    calls: dict[str, dict[str, Any]] = {"register": {}, "impl": {}}
    trt, binding = ModuleType("tensorrt"), ModuleType("tensorrt.plugin")
    trt.__spec__ = ModuleSpec("tensorrt", None)  # torch looks whether it is installed
    for ours, theirs in plugins.OF_NAME.items():
        setattr(trt, theirs.lower(), SimpleNamespace(name=theirs, ours=ours))
    binding.TensorDesc = TensorDesc
    binding.from_shape_expr = TensorDesc
    for verb, kept in calls.items():
        setattr(binding, verb, lambda name, kept=kept: lambda f: kept.setdefault(name, f))
    trt.plugin = binding
    monkeypatch.setitem(sys.modules, "tensorrt", trt)
    monkeypatch.setitem(sys.modules, "tensorrt.plugin", binding)
    return calls


def _cases(rng: np.random.Generator) -> list[Case]:
    x, y = (torch.from_numpy(rng.standard_normal((4, 6), np.float32)) for _ in range(2))
    return [Case("plain", (x, y), {"times": 3})]


@kernel("edge::pairs", version=1, sample=_cases, tolerance=Tolerance(0, 0))
def pairs(
    x: torch.Tensor, y: torch.Tensor, times: int = 2, scale: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Both side by side and repeated; and sums of pairs of rows."""
    both = torch.cat([x, y * scale], dim=0).repeat(1, times)
    return both, x.reshape(x.shape[0] // 2, 2, x.shape[1]).sum(1).half()


def described(recorded: dict[str, dict[str, Any]]) -> tuple[Any, TensorDesc, TensorDesc]:
    plugins.register(pairs, SimpleNamespace())
    describe = recorded["register"]["edge::pairs"]
    trt = sys.modules["tensorrt"]
    x = TensorDesc([Expression("a"), Expression("b")], trt.float)
    y = TensorDesc([Expression("c"), Expression("b")], trt.float)
    return describe, x, y


def test_the_signature_is_the_kernels(recorded: dict[str, dict[str, Any]]) -> None:
    describe, _, _ = described(recorded)
    signature = inspect.signature(describe)
    assert list(signature.parameters) == ["x", "y", "times", "scale"]
    annotations = [p.annotation for p in signature.parameters.values()]
    assert annotations == [TensorDesc, TensorDesc, int, float]
    assert signature.return_annotation == tuple[TensorDesc, TensorDesc]
    run = inspect.signature(recorded["impl"]["edge::pairs"])
    assert list(run.parameters) == ["x", "y", "times", "scale", "outputs", "stream"]


def test_sizes_are_expressions_of_the_inputs(recorded: dict[str, dict[str, Any]]) -> None:
    describe, x, y = described(recorded)
    both, sums = describe(x, y, 3, 1.0)
    values = {"a": 10, "b": 7, "c": 12}
    sizes = [[eval(_text(e), {}, values) for e in out.shape_expr] for out in (both, sums)]
    want = pairs(torch.zeros(10, 7), torch.zeros(12, 7), times=3)
    assert sizes == [list(out.shape) for out in want]
    assert [out.dtype.ours for out in (both, sums)] == ["float32", "float16"]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_every_kernel_has_rules_for_its_sizes(row: Row) -> None:
    """Of inputs that TensorRT has: from one sample to the sizes of another."""
    spec = row.load()
    full = [case for case in spec.sample(np.random.default_rng(1)) if _is_full(spec, case)]
    kinds = [[(str(t.dtype)[6:], t.ndim) for t in case.tensors] for case in full]
    assert full
    case = next(case for case, kind in zip(full, kinds, strict=True) if kind == kinds[-1])
    dtypes, ranks = zip(*kinds[-1], strict=True)
    rules = plugins.rules_of(spec, dtypes, ranks, dict(case.attributes))
    made = spec.reference(*case.tensors, **case.attributes)
    made = made if isinstance(made, tuple) else (made,)
    sizes = [tuple(t.shape) for t in case.tensors]
    assert [tuple(size(sizes) for size in r.sizes) for r in rules] == [m.shape for m in made]
    assert [rule.dtype for rule in rules] == [str(m.dtype)[6:] for m in made]


def _is_full(spec: KernelSpec, case: Case) -> bool:
    given = [t for t in case.tensors if t is not None]
    return len(given) == len(spec.tensors) and all(
        str(t.dtype)[6:] in plugins.OF_NAME and t.numel() for t in given
    )


def test_inputs_without_a_sample_are_refused(recorded: dict[str, dict[str, Any]]) -> None:
    describe, x, y = described(recorded)
    x.dtype = sys.modules["tensorrt"].half
    with pytest.raises(sdk.InputError, match="no sample of these inputs"):
        describe(x, y, 3, 1.0)


class Code:
    """A stand-in for the compiled CUDA code: it computes on the CPU, and notes its arguments."""

    def __init__(self, answer: bytes | None = None) -> None:
        self.seen: list[Any] = []

        def run(*given: Any) -> bytes | None:
            self.seen.append(given)
            return answer

        def workspace(*_: object) -> int:
            return 64

        self.pairs_cuda, self.pairs_cuda_workspace = run, workspace


def tensor_of(array: np.ndarray) -> SimpleNamespace:
    """As TensorRT gives it."""
    name = plugins.OF_NAME[array.dtype.name]
    return SimpleNamespace(
        data_ptr=array.ctypes.data,
        shape=array.shape,
        strides=tuple(step // array.itemsize for step in array.strides),
        dtype=SimpleNamespace(name=name),
    )


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A stand-in for CUDA's memory: what was taken and given back."""
    done: list[str] = []

    class Runtime:
        @staticmethod
        def cudaMallocAsync(size: int, stream: int) -> tuple[int, int]:  # noqa: N802
            done.append(f"take {size} on {stream}")
            return 0, 4096

        @staticmethod
        def cudaFreeAsync(pointer: int, stream: int) -> tuple[int]:  # noqa: N802
            done.append(f"give {pointer} on {stream}")
            return (0,)

    monkeypatch.setattr(plugins, "_runtime", lambda: Runtime)
    return done


def test_the_call_has_pointers_shapes_and_attributes(
    recorded: dict[str, dict[str, Any]], memory: list[str]
) -> None:
    code = Code()
    plugins.register(pairs, code)  # type: ignore[arg-type]
    x, y = np.zeros((4, 6), np.float32), np.zeros((2, 6), np.float32)
    out = [np.zeros((6, 18), np.float32), np.zeros((2, 6), np.float16)]
    given = [tensor_of(x), tensor_of(y), 3, 0.5, [tensor_of(o) for o in out], 17]
    recorded["impl"]["edge::pairs"](*given)
    ((inputs, count, values, outputs, workspace, stream),) = code.seen
    assert isinstance(inputs[0], CTensor)
    assert isinstance(values[0], CValue)
    assert (count, inputs[1].data, list(inputs[1].shape[:2])) == (2, y.ctypes.data, [2, 6])
    assert (values[0].integer, values[1].number) == (3, 0.5)
    assert [o.data for o in outputs] == [o.ctypes.data for o in out]
    assert (workspace.value, stream.value) == (4096, 17)
    assert memory == ["take 64 on 17", "give 4096 on 17"]


def test_a_refusal_is_passed_on(memory: list[str]) -> None:
    code = Code(b"heads are too wide")
    with pytest.raises(sdk.EngineError, match="edge::pairs refuses") as caught:
        plugins.call_cuda(pairs, code, [], (CValue * 1)(), [], 5)  # type: ignore[arg-type]
    assert "heads are too wide" in str(caught.value)
    assert memory[-1] == "give 4096 on 5"


def test_the_example_has_sizes_of_its_input(recorded: dict[str, dict[str, Any]]) -> None:
    spec = next(row for row in ROWS if row.name == "scale_add").load()
    plugins.register(spec, ctypes.CDLL(None))
    a, b = Expression("a"), Expression("b")
    x = TensorDesc([a, b], sys.modules["tensorrt"].float)
    made = recorded["register"]["edge::scale_add"](x, x, 1.0)
    assert [_text(e) for e in made.shape_expr] == ["a", "b"]
