"""Weight-only programs: the same numbers on every engine, small files, clear refusals."""

from __future__ import annotations

from collections import Counter
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

import sdk
from sdk.compilers import lower
from sdk.compilers.capture import capture
from sdk.compilers.program import Program
from sdk.compilers.weight_only import compress, to_groups
from sdk.compilers.weight_only_graph import find_weights
from sdk.errors import InputError, QuantizationError
from sdk.parity import TOLERANCE, compare
from sdk.runtimes import open_session, probe
from sdk.target import WEIGHT_ONLY, Target

ENGINES = ("onnxruntime", "openvino", "torch")
PRECISIONS = ("w8", "int4", "int2")
LENGTH = sdk.Dim("length", 2, 5, 12)


class Decoder(nn.Module):
    """Token ids to logits: tied embedding and head, a gated product as in a Llama, a bias."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.embed = nn.Embedding(40, width)
        self.norm = nn.LayerNorm(width)
        self.up, self.gate = nn.Linear(width, 2 * width), nn.Linear(width, 2 * width, bias=False)
        self.down = nn.Linear(2 * width, width)
        self.head = nn.Linear(width, 40, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        y = self.norm(x)
        return self.head(x + self.down(nnf.silu(self.gate(y)) * self.up(y)))


class Products(nn.Module):
    """Weights that are not an `nn.Linear`: stored as inputs x outputs, or transposed by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(40, 32)
        self.stored = nn.Parameter(torch.randn(32, 64) / 6)
        self.bias = nn.Parameter(torch.randn(64))
        self.turned = nn.Parameter(torch.randn(32, 64) / 8)
        self.flat = nn.Linear(32, 5)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.table(ids)
        y = torch.addmm(self.bias, x.reshape(-1, 32), self.stored).reshape(*ids.shape, 64)
        z = torch.relu(x @ self.stored + y) @ self.turned.t()
        return self.flat(z.reshape(-1, 32))


class Wide(nn.Module):
    """One layer, large enough that its weight is the file."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(512, 512, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


MODELS = {
    "decoder": Decoder,
    "products": Products,
    "wide": Wide,
    "narrow": lambda: Decoder(20),  # rows that are no whole blocks of ONNX Runtime's
    "filled": lambda: Decoder(48),  # neither, but the kernel takes them
}


@lru_cache(maxsize=3)
def captured(name: str) -> Program:
    torch.manual_seed(0)
    if name == "wide":
        return capture(Wide().eval(), {"x": torch.randn(2, 512)})
    return capture(MODELS[name]().eval(), {"ids": ids(0)}, {"ids": {1: LENGTH}})


@lru_cache(maxsize=8)
def compressed(name: str, precision: str) -> Program:
    return compress(captured(name), precision)


def ids(seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 40, (2, 3 + seed % 5), generator=generator)


def batches(count: int, start: int = 100) -> list[dict[str, Any]]:
    return [{"ids": ids(start + index).numpy()} for index in range(count)]


def rms(got: Tensor, want: Tensor) -> float:
    return float((got - want).norm() / want.norm())


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    ("name", "precision"),
    [("narrow", "w8"), *((m, p) for m in ("decoder", "products") for p in PRECISIONS)],
)
def test_engines_run_the_programs_numbers(
    name: str, precision: str, engine: str, tmp_path: Path
) -> None:
    program, target = compressed(name, precision), Target(engine, precision=precision)
    if not probe(engine).run:
        pytest.skip(probe(engine).reason or "")
    build = lower(program, target, tmp_path / "build")
    session = open_session(build.file, program.signature, target, threads=1)
    for feed in batches(4):
        parity = compare(session.run(feed), program.reference(feed), TOLERANCE[precision])
        assert parity.ok, parity
    session.close()


def test_every_engine_lists_what_it_can_do() -> None:
    for engine in ENGINES:
        device = probe(engine).devices.get("cpu")
        assert device is None or {*PRECISIONS} <= {*device.precisions}, engine
    assert {*PRECISIONS} <= {*WEIGHT_ONLY}


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", ["decoder", "products"])
def test_onnx_runtime_takes_no_weight_apart(name: str, precision: str, tmp_path: Path) -> None:
    ort = pytest.importorskip("onnxruntime")
    program = compressed(name, precision)
    build = lower(program, Target("onnxruntime", precision=precision), tmp_path / "build")
    options = ort.SessionOptions()
    options.optimized_model_filepath, options.log_severity_level = str(tmp_path / "run.onnx"), 3
    ort.InferenceSession(build.file, options, providers=["CPUExecutionProvider"])
    kinds = Counter(node.op_type for node in onnx.load(tmp_path / "run.onnx").graph.node)
    products = 4
    assert (kinds["MatMulNBits"], kinds["GatherBlockQuantized"]) == (products, 1)
    assert not {"DequantizeLinear", "MatMul", "Gemm", "FusedMatMul", "Cast"} & {*kinds}


@pytest.mark.parametrize("precision", ["w8", "int4"])
def test_openvino_keeps_weights_compressed(precision: str, tmp_path: Path) -> None:
    ov = pytest.importorskip("openvino")
    build = lower(
        compressed("decoder", precision), Target("openvino", precision=precision), tmp_path / "b"
    )
    model = ov.Core().compile_model(build.file, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    kinds = [
        node.input_value(1).get_element_type().get_type_name()
        for node in model.get_runtime_model().get_ordered_ops()
        if node.get_rt_info()["layerType"].astype(str) == "FullyConnected"
    ]
    assert kinds == [{"w8": "i8", "int4": "i4"}[precision]] * 4


def test_openvino_reads_two_bit_weights_where_its_own_format_is_smaller(tmp_path: Path) -> None:
    ov = pytest.importorskip("openvino")
    program, target = compressed("wide", "int2"), Target("openvino", precision="int2")
    build = lower(program, target, tmp_path / "build")
    assert build.file.name == "model.xml"
    model = ov.Core().compile_model(build.file, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    (layer,) = [
        node
        for node in model.get_runtime_model().get_ordered_ops()
        if node.get_rt_info()["layerType"].astype(str) == "FullyConnected"
    ]
    assert layer.input_value(1).get_element_type().get_type_name() == "u2"
    session = open_session(build.file, program.signature, target, threads=1)
    feed = {"x": torch.randn(2, 512).numpy()}
    assert compare(session.run(feed), program.reference(feed), TOLERANCE["int2"]).ok
    session.close()
    small = lower(compressed("decoder", "int2"), target, tmp_path / "small")
    assert sorted(path.name for path in small.file.parent.iterdir()) == ["model.onnx"]


@pytest.mark.parametrize(
    ("precision", "group_size", "engine", "bits"),
    [
        ("w8", None, "onnxruntime", 8.1),
        ("int4", 32, "onnxruntime", 4.6),
        ("int4", 128, "openvino", 4.25),
        ("int2", 32, "onnxruntime", 2.6),
        ("int2", 32, "openvino", 2.9),
        ("int4", 32, "torch", 4.6),
        ("int2", 128, "torch", 2.25),
    ],
)
def test_files_are_as_small_as_their_bits(
    precision: str, group_size: int | None, engine: str, bits: float, tmp_path: Path
) -> None:
    program = compress(captured("wide"), precision, group_size=group_size)
    build = lower(program, Target(engine, precision=precision), tmp_path / "build")
    size = sum(file.stat().st_size for file in build.file.parent.iterdir())
    assert 8 * size / 512**2 < bits


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_tied_weights_are_stored_once(engine: str, tmp_path: Path) -> None:
    build = lower(
        compressed("decoder", "int4"), Target(engine, precision="int4"), tmp_path / "build"
    )
    stored = onnx.load(build.file).graph.initializer
    assert sum(tensor.name.startswith(("embed.", "head.")) for tensor in stored) <= 2 + 4 * (
        engine == "onnxruntime"  # its shape and bounds, of one number each
    )
    large = [t for t in stored if t.name.startswith(("embed.", "head.")) and len(t.raw_data) > 200]
    assert len(large) == 1


def test_settings_are_recorded_and_the_digest_tells_methods_apart() -> None:
    rtn, hqq = compressed("decoder", "int4"), compress(captured("decoder"), "int4", method="hqq")
    assert rtn.settings == {"method": "rtn", "group_size": "32"}
    assert hqq.settings == {"method": "hqq", "group_size": "32"}
    assert compressed("decoder", "w8").settings == {"method": "rtn", "group_size": "channel"}
    assert rtn.digest() != hqq.digest()
    assert rtn.base is not None
    assert rtn.base.digest() == captured("decoder").digest()


def test_layers_that_are_kept_stay_as_they_are() -> None:
    program = compress(captured("decoder"), "int4", keep_float=["up", "head"])
    assert program.float_layers == ("embed", "head", "up")
    left = find_weights(program.exported.module(check_guards=False))  # type: ignore[arg-type]
    assert [weight.layers for weight in left] == [["embed", "head"], ["up"]]


def test_more_bits_and_smaller_groups_lose_less() -> None:
    torch.manual_seed(0)
    matrix = torch.randn(64, 256)

    def loss(precision: str, size: int, method: str = "rtn") -> float:
        made = to_groups(matrix, precision, size, method)
        values = made.q.reshape(64, -1, size) * made.scale.float().unsqueeze(-1)
        return rms(values.reshape(64, 256), matrix)

    assert loss("w8", 256) < 0.01 < loss("int4", 32) < 0.09 < loss("int2", 32) < 0.38
    assert loss("int4", 32) < loss("int4", 128)
    for precision in ("int4", "int2"):
        assert loss(precision, 32, "hqq") < 0.98 * loss(precision, 32)


def test_groups_of_zeros_and_scales_out_of_the_range_of_half() -> None:
    matrix = torch.randn(4, 64)
    matrix[1] = 0
    matrix[2, 32:] = 0
    made = to_groups(matrix, "int4", 32, "rtn")
    assert made.scale.dtype == torch.float16
    assert bool((made.scale != 0).all())
    assert made.q[1].abs().max() == made.q[2, 32:].abs().max() == 0
    for factor in (1e-6, 1e6):
        small = to_groups(torch.randn(4, 64) * factor, "int4", 32, "hqq")
        assert small.scale.dtype == torch.float32
        assert bool(torch.isfinite(small.scale).all())


def refuse(precision: str, match: str, **options: Any) -> None:
    with pytest.raises(QuantizationError, match=match):
        compress(options.pop("program", captured("decoder")), precision, **options)


def test_shapes_that_groups_do_not_divide_are_named() -> None:
    with pytest.raises(QuantizationError) as caught:
        compress(captured("narrow"), "int4", keep_float=["down"])
    text = str(caught.value)
    assert "'embed' has 20 inputs, which groups of 32 do not divide" in text
    assert "keep_float=['embed', 'head', 'gate', 'up']" in text
    with pytest.raises(QuantizationError, match="group_size=16 or 32, or keep_float"):
        compress(captured("decoder"), "int2", group_size=64, keep_float=["down"])
    refuse("int4", "not one that engines have", group_size=24)
    refuse("w8", "one scale per output channel", group_size=32)


def test_methods_that_cannot_be_used_are_refused() -> None:
    refuse("int2", "cannot make int2", method="awq")
    refuse("w8", "cannot make w8", method="gptq")
    refuse("int4", "cannot make int4", method="magic")
    for method in ("awq", "gptq", "scale_estimation"):
        refuse("int4", "needs calibration data", method=method)
    refuse("int4", "Calibration batch 0", method="awq", calibration=[{"seq": np.zeros(3)}])


def test_unknown_layers_and_models_without_any() -> None:
    with pytest.raises(InputError, match="unknown layer 'middle'"):
        compress(captured("decoder"), "int4", keep_float=["middle"])
    plain = capture(nn.Sequential(nn.Conv2d(3, 4, 3)).eval(), {"input": torch.zeros(1, 3, 8, 8)})
    refuse("w8", "no linear or embedding layer", program=plain)


def test_weights_that_are_not_finite_are_refused() -> None:
    model = nn.Sequential(nn.Linear(32, 4)).eval()
    with torch.no_grad():
        model[0].weight[1, 2] = torch.inf
    refuse("int4", "NaN or infinite", program=capture(model, {"input": torch.zeros(1, 32)}))


def test_a_compile_writes_the_metric_before_and_after(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, feeds = Decoder().eval(), batches(6)
    with torch.no_grad():
        best = [model(torch.from_numpy(feed["ids"])).argmax(-1).numpy() for feed in feeds]

    def agreement(predict: Any) -> float:
        same = [predict(f["ids"]).argmax(-1) == b for f, b in zip(feeds, best, strict=True)]
        return float(np.mean([np.mean(part) for part in same]))

    artifact = sdk.compile(
        model,
        inputs=feeds[0],
        target="onnxruntime:cpu:int4",
        output=tmp_path / "decoder.edge",
        dynamic={"ids": {1: LENGTH}},
        metric=agreement,
        max_drop=0.5,
        method="hqq",
        group_size=16,
        waive=["slower"],
        threads=1,
    )
    kept = artifact.manifest.kept
    assert kept.target == "onnxruntime:cpu:int4"
    assert kept.settings == {"method": "hqq", "group_size": "16"}
    assert kept.fidelity is not None
    assert (kept.fidelity.metric, kept.fidelity.reference) == ("agreement", 1.0)
    assert kept.fidelity.measured is not None
    assert 0.5 <= kept.fidelity.measured <= 1.0
    with sdk.load(artifact.path) as loaded:
        assert loaded.predict(feeds[1])["output"].shape == (*feeds[1]["ids"].shape, 40)
