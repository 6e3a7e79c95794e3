"""ONNX Runtime's NPU through QNN, on the simulator that its library brings for x86-64 Linux."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cases import Attention
from engines import row
from torch import Tensor, nn
from torch.fx import Node
from torch.utils import _pytree as pytree
from torchao.quantization.pt2e.quantizer import QuantizationSpec

import sdk
from sdk import qnn
from sdk.compilers import annotate, lower, qnn as compiler
from sdk.compilers.capture import capture
from sdk.compilers.program import Build, Program
from sdk.compilers.quantize import QUANTIZE, SwitchableQdq, quantize
from sdk.runtimes import open_session
from sdk.target import Target

NPU, CPU = Target.parse("onnxruntime:npu:int8"), Target.parse("onnxruntime:cpu:int8")
Feed = dict[str, np.ndarray[Any, Any]]


@pytest.fixture(autouse=True)
def engine() -> None:
    row("onnxruntime:npu:int8").require()


class Convolutions(nn.Module):
    """Three convolutions and a residual, without biases: those have a grid of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2, 1, bias=False)
        self.body = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.last = nn.Conv2d(8, 4, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        return self.last(x + F.relu(self.body(x)))


class Block(nn.Module):
    """A transformer's layer: attention and a wider pair of linear layers behind norms."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.attention, self.norm = Attention(width, 4), nn.LayerNorm(width)
        self.wide, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.attention(x)
        return x + self.narrow(F.gelu(self.wide(self.norm(x))))


class Transformer(nn.Module):
    """Token ids to class scores by two layers."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, width)
        self.place = nn.Parameter(0.1 * torch.randn(8, width))
        self.layers = nn.Sequential(Block(width), Block(width))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.norm(self.layers(self.embed(ids) + self.place)).mean(1))


def pictures(count: int, seed: int) -> list[Feed]:
    rng = np.random.default_rng(seed)
    return [{"x": rng.standard_normal((2, 3, 16, 16), dtype=np.float32)} for _ in range(count)]


def on_grid(feeds: list[Feed]) -> list[Feed]:
    """Pictures whose values are whole sixteenths."""
    return [{"x": np.rint(feed["x"] * 16) / np.float32(16)} for feed in feeds]


def sentences(count: int, seed: int) -> list[Feed]:
    rng = np.random.default_rng(seed)
    return [{"ids": rng.integers(0, 50, (2, 8))} for _ in range(count)]


def network(model: type[nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return model().eval()


def quantized(
    model: type[nn.Module], inputs: Callable[[int, int], list[Feed]], precision: str = "int8"
) -> Program:
    """The model as an NPU takes it."""
    program = capture(network(model), inputs(1, 0)[0])
    return quantize(program, inputs(32, 1), precision=precision, everywhere=True)


def results(program: Program, folder: Path, feeds: list[Feed], target: Target) -> list[Feed]:
    """The outputs for `feeds` on one device, of the same ONNX file as on any other."""
    build = lower(program, target, folder / target.device)
    session = open_session(build.file, program.signature, target, threads=1)
    try:
        return [session.run(feed) for feed in feeds]
    finally:
        session.close()


def exact(spec: QuantizationSpec) -> QuantizationSpec:
    """The grid with its scale rounded up to a power of two."""
    plain = spec.observer_or_fake_quant_ctr.p

    class Rounded(plain.func):  # type: ignore[misc, name-defined]
        def calculate_qparams(self) -> tuple[Tensor, Tensor]:
            scale, zero = super().calculate_qparams()
            return torch.exp2(torch.ceil(torch.log2(scale))), zero

    return replace(spec, observer_or_fake_quant_ctr=Rounded.with_args(**plain.keywords))


class TiesUp(SwitchableQdq):
    """Runs a Q/DQ program exactly, with values halfway between two steps rounded up."""

    def run_node(self, n: Node) -> Any:
        """Quantize by hand; all else as it is."""
        if not str(n.target).startswith(QUANTIZE):
            return super().run_node(n)
        value, scale, zero, low, high, dtype = self.fetch_args_kwargs_from_env(n)[0]
        steps = torch.floor(value.double() / scale + 0.5) + zero
        return steps.clamp(low, high).to(dtype)


@pytest.fixture
def powers_of_two(monkeypatch: pytest.MonkeyPatch) -> None:
    """Grids of powers of two, where going from one to the next is a shift: nothing is lost."""
    for table in (annotate.ACTIVATION, annotate.WEIGHT):
        for key, spec in list(table.items()):
            monkeypatch.setitem(table, key, exact(spec))


def test_only_ties_are_rounded_otherwise(tmp_path: Path, powers_of_two: None) -> None:
    """Halfway between two steps the CPU goes to the even one, as the program does, the NPU up."""
    program = quantized(Convolutions, pictures)
    graph = program.exported.module(check_guards=False)
    feeds = on_grid(pictures(8, 2))
    npu, cpu = (results(program, tmp_path, feeds, target) for target in (NPU, CPU))
    for feed, ours, theirs in zip(feeds, npu, cpu, strict=True):
        with torch.no_grad():
            (up,) = pytree.tree_leaves(TiesUp(graph, None).run(torch.from_numpy(feed["x"])))
        np.testing.assert_array_equal(ours["output"], up.numpy())
        np.testing.assert_array_equal(theirs["output"], program.reference(feed)["output"])


class Chain(nn.Sequential):
    """Three convolutions whose weights are even numbers of steps, so that products are too."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(),
            nn.Conv2d(8, 8, 3, padding=1, groups=2), nn.ReLU(),
            nn.Conv2d(8, 4, 1),
        )  # fmt: skip
        for layer in self.convolutions():
            weight = torch.randint(-31, 32, layer.weight.shape) * 2.0
            weight[:, 0, 0, 0] = 126  # of each channel: one step is 2^-9
            layer.weight.data = weight / 512
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)

    def convolutions(self) -> list[nn.Conv2d]:
        return [layer for layer in self if isinstance(layer, nn.Conv2d)]


def scales(program: Program) -> dict[str, float]:
    """Layer -> step of the activations that it reads."""
    graph = program.exported.graph
    readers = {node.args[0]: node for node in graph.nodes if node.target in annotate.WEIGHTED}
    return {
        annotate.layer_of(readers[node]): node.args[1] for node in graph.nodes if node in readers
    }


def test_convolutions_are_bit_exact(tmp_path: Path, powers_of_two: None) -> None:
    """Sums that are odd numbers of steps are never halfway between two of their outputs' steps."""
    model, feeds = network(Chain), on_grid(pictures(8, 2))
    program = quantize(capture(model, feeds[0]), pictures(32, 1), everywhere=True)
    for step, layer in zip(scales(program).values(), model.convolutions(), strict=True):
        odd = torch.randint(-20, 20, layer.bias.shape) * 2 + 1
        layer.bias.data = odd * step / 512
    again = quantize(capture(model, feeds[0]), pictures(32, 1), everywhere=True)
    assert scales(again) == scales(program)
    npu, cpu = (results(again, tmp_path, feeds, target) for target in (NPU, CPU))
    for ours, theirs in zip(npu, cpu, strict=True):
        assert np.unique(theirs["output"]).size > 50
        np.testing.assert_array_equal(ours["output"], theirs["output"])


@pytest.mark.slow
def test_other_grids_are_two_steps_apart_at_most(tmp_path: Path) -> None:
    """The NPU rescales with fewer bits than the CPU, so that values near a tie go the other way.

    Swept over all sums of one convolution, the simulator drops the low bits of a sum (four of them
    at a factor of 1/80) and multiplies by a factor that is off by up to 2e-4: no other grids than
    those of powers of two can be exact.
    """
    program, feeds = quantized(Convolutions, pictures), pictures(8, 2)
    npu, cpu = (results(program, tmp_path, feeds, target) for target in (NPU, CPU))
    ours, theirs = (np.concatenate([x["output"].ravel() for x in y]) for y in (npu, cpu))
    apart = (ours - theirs) / np.diff(np.unique(theirs)).min()
    assert np.abs(apart).max() < 2.01
    assert np.count_nonzero(apart) < 0.25 * apart.size


@pytest.mark.parametrize(
    ("precision", "step", "loss"),
    [pytest.param("int8", 0.03, 0.08, marks=pytest.mark.slow), ("a16w8", 0.01, 0.05)],
)
def test_transformer_runs_on_the_npu_alone(
    precision: str, step: float, loss: float, tmp_path: Path
) -> None:
    """Bounds of the relative error: against its own program, and against the model in fp32."""
    model, target = network(Transformer), NPU.with_precision(precision)
    program, feeds = quantized(Transformer, sentences, precision), sentences(4, 3)
    build = lower(program, target, tmp_path / "build")
    session = open_session(build.file, program.signature, target, threads=1)
    rows = session.placement()
    assert {row.kind for row in rows} >= {"Gemm", "MatMul", "Softmax", "LayerNormalization", "Gelu"}
    assert {row.device for row in rows} == {"npu"}
    got = np.stack([session.run(feed)["output"] for feed in feeds])
    session.close()
    with torch.no_grad():
        fp32 = np.stack([model(torch.from_numpy(feed["ids"])).numpy() for feed in feeds])
    own = np.stack([program.reference(feed)["output"] for feed in feeds])
    assert np.sqrt(np.mean((got - own) ** 2)) < step * own.std()
    assert np.sqrt(np.mean((got - fp32) ** 2)) < loss * fp32.std()


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> tuple[sdk.Artifact, sdk.Artifact]:
    """One model for any chip, and as a context binary for one."""
    row("onnxruntime:npu:int8").require()
    folder = tmp_path_factory.mktemp("npu")
    options = {"inputs": pictures(1, 0)[0], "calibration": pictures(8, 1), "threads": 1}
    portable, context = (
        sdk.compile(
            network(Convolutions), target=target, output=folder / f"{name}.edge",
            fallback="forbid", **options,
        )
        for name, target in (("any", NPU), ("one", replace(NPU, arch="SM8650")))
    )  # fmt: skip
    return portable, context


def test_manifest_says_simulator_and_what_the_binary_needs(
    artifacts: tuple[sdk.Artifact, sdk.Artifact],
) -> None:
    portable, context = (artifact.manifest for artifact in artifacts)
    assert portable.kept.checked_on == context.kept.checked_on == "simulator"
    assert portable.kept.latency is None
    assert portable.requires == {}
    assert context.requires == {"qnn": qnn.sdk_version(), "soc": "SM8650", "htp": "v75"}


def test_context_binary_computes_the_same(artifacts: tuple[sdk.Artifact, sdk.Artifact]) -> None:
    """On the simulator of its own chip; its placement names QNN's operators and their nodes."""
    x = pictures(1, 5)[0]["x"]
    with sdk.load(artifacts[1], fallback="forbid", threads=1) as model:
        rows, got = model.placement(), model.predict(x)
    with sdk.load(artifacts[0], fallback="forbid", threads=1) as model:
        want = model.predict(x)
    np.testing.assert_allclose(got, want, atol=2.1 * np.diff(np.unique(want)).min())
    assert {row.device for row in rows} == {"npu"}
    assert [row.kind for row in rows].count("Conv2d") == 3
    nodes = {name for row in rows for name in row.nodes}
    assert sum(name.startswith("node_Conv") for name in nodes) == 3


def test_cpu_stands_in_for_the_portable_file_alone(
    artifacts: tuple[sdk.Artifact, sdk.Artifact], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where QNN is not installed: a warning, or the refusal of what no CPU can run."""
    with pytest.raises(sdk.EngineUnavailableError, match="no CPU can stand in"):
        sdk.load(artifacts[1], device="cpu", threads=1)
    monkeypatch.setattr(qnn, "installed", lambda _: False)
    with pytest.raises(sdk.EngineUnavailableError, match="no CPU can stand in"):
        sdk.load(artifacts[1], fallback="allow", threads=1)
    with pytest.raises(sdk.EngineUnavailableError, match="cannot run on 'npu'"):
        sdk.load(artifacts[0], fallback="forbid", threads=1)
    with pytest.warns(sdk.FallbackWarning, match="the CPU stands in"):
        model = sdk.load(artifacts[0], threads=1)
    with model:
        assert str(model.target) == "onnxruntime:cpu:int8"
        assert {row.device for row in model.placement()} == {"cpu"}


def test_threads_share_a_session(artifacts: tuple[sdk.Artifact, sdk.Artifact]) -> None:
    feeds = [feed["x"] for feed in pictures(8, 6)]
    with sdk.load(artifacts[0], threads=1) as model:
        want = [model.predict(x) for x in feeds]
        with ThreadPoolExecutor(4) as pool:
            got = list(pool.map(model.predict, feeds * 3))
    for index, array in enumerate(got):
        np.testing.assert_array_equal(array, want[index % len(feeds)])
    with pytest.raises(sdk.EngineError, match="The session is closed"):
        model.predict(feeds[0])
    with pytest.raises(sdk.EngineError, match="The session is closed"):
        model.placement()


def test_profile_says_that_times_are_a_simulators(
    artifacts: tuple[sdk.Artifact, sdk.Artifact],
) -> None:
    with sdk.load(artifacts[0], threads=1) as model:
        profile = model.session.profile(pictures(1, 7)[0], runs=2)
    assert any("simulator" in note for note in profile.notes)
    assert {row.device for row in profile.operators} == {"npu"}


class Erf(nn.Module):
    """A linear layer and an operator that QNN does not have."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        return torch.erf(self.layer(x.flatten(2)[..., :16].flatten(0, 1)))


@pytest.mark.slow
def test_fallback_is_named_and_can_be_forbidden(tmp_path: Path) -> None:
    options = {
        "inputs": pictures(1, 0)[0], "calibration": pictures(4, 1),
        "target": "onnxruntime:npu:int8", "output": tmp_path / "m.edge", "threads": 1,
    }  # fmt: skip
    with pytest.raises(sdk.UnsupportedOperatorError, match="do not run on npu") as caught:
        sdk.compile(network(Erf), fallback="forbid", **options)
    assert "(Erf) on cpu: QNN has no operator for it" in str(caught.value.got)
    with pytest.warns(sdk.FallbackWarning, match=r"\(Erf\) on cpu"):
        sdk.compile(network(Erf), **options)
    with sdk.load(tmp_path / "m.edge", fallback="allow", threads=1) as model:
        assert {row.device for row in model.placement()} == {"npu", "cpu"}


@pytest.mark.parametrize(
    ("target", "dynamic", "error", "words"),
    [
        ("onnxruntime:npu:int8", {"x": {0: sdk.Dim("batch", 1, 2, 4)}},
         sdk.UnsupportedOperatorError, "fixed shapes only"),
        ("onnxruntime:npu:int8:SM1", None, sdk.InputError, "chip 'SM1' is not known"),
        ("onnxruntime:npu:fp32", None, sdk.EngineUnavailableError, "does not run fp32"),
    ],
    ids=["dynamic", "chip", "fp32"],
)  # fmt: skip
def test_what_the_npu_cannot_do_is_refused(
    target: str, dynamic: Any, error: type[sdk.EdgeError], words: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=words):
        sdk.compile(
            network(Convolutions), inputs=pictures(1, 0)[0], calibration=pictures(2, 1),
            target=target, dynamic=dynamic, output=tmp_path / "m.edge", threads=1,
        )  # fmt: skip
    assert list(tmp_path.iterdir()) == []


def test_abort_of_the_library_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """QNN 2.51 aborts on a vector that is gathered into pictures, for one; ours goes on."""
    monkeypatch.setattr(compiler, "BUILD", "import os; os.abort()")
    with pytest.raises(sdk.UnsupportedOperatorError, match=r"QNN's library aborts .*signal 6"):
        compiler.finish(Build(tmp_path / "model.onnx"), NPU)


def test_refusal_of_the_library_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"no model")
    with pytest.raises(sdk.EngineError, match="QNN cannot compile the model") as caught:
        compiler.finish(Build(tmp_path / "model.onnx"), NPU)
    assert "model.onnx" in str(caught.value.got)


def test_stdout_stays_clean(artifacts: tuple[sdk.Artifact, sdk.Artifact]) -> None:
    """The simulator's library greets on stdout when it is loaded."""
    code = f"import sdk; sdk.load({str(artifacts[0].path)!r}, threads=1).close()"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == ""
