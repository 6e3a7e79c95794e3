"""What `compilers/coreml.py` writes: checked by the evaluator on the saved package."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sdk.checking import open_build
from sdk.compilers import lower
from sdk.errors import EngineError, InputError, SignatureMismatchError, UnsupportedOperatorError
from sdk.parity import TOLERANCE, compare
from sdk.signature import Array, Dim
from sdk.target import Target

if TYPE_CHECKING:
    from sdk.compilers.program import Build, Program

pytest.importorskip("coremltools")

Feed = Mapping[str, Array]


class Function(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: Tensor) -> Any:
        return self.function(*inputs)


class Words(nn.Module):
    """Embedding, linear layers and a product with a constant matrix: all that is compressed."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.wide = nn.Embedding(40, 64), nn.Linear(64, 96)
        self.narrow = nn.Linear(96, 64, bias=False)
        self.matrix = nn.Parameter(torch.randn(64, 32) / 8)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.table(ids)
        return (x + self.narrow(F.gelu(self.wide(x)))) @ self.matrix


class Totals(nn.Module):
    """Adds up what it has seen, in a part of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.part = nn.Module()
        self.part.register_buffer("total", torch.zeros(2, 4))
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        self.part.total.add_(self.layer(x))
        return self.part.total * 2


def compiled(
    model: nn.Module,
    inputs: Any,
    target: str,
    folder: Path,
    *,
    dynamic: Mapping[str, Mapping[int, Dim]] | None = None,
    **options: Any,
) -> tuple[Program, Build]:
    """The program at the target's precision, and its package."""
    from sdk.compilers.capture import capture, example_feed
    from sdk.compilers.precision import to_precision

    parsed = Target.parse(target)
    program = capture(model.eval(), inputs, dynamic)
    feed = example_feed(program, inputs) or {}
    program = to_precision(program, parsed, example=feed, calibration=[feed], **options)
    return program, lower(program, parsed, folder / "built")


def checked(program: Program, build: Build, target: str, feed: Feed) -> dict[str, Array]:
    """The outputs of the saved package, which are those of the program."""
    parsed = Target.parse(target)
    session = open_build(build, program, parsed, threads=1)
    got = session.run(feed)
    report = compare(got, program.reference(feed), TOLERANCE[parsed.precision])
    assert report.ok, report
    return got


FUNCTIONS: dict[str, tuple[Callable[..., Any], tuple[Tensor, ...]]] = {
    "gelu by tanh": (lambda x: F.gelu(x * 3, approximate="tanh"), (torch.randn(4, 8),)),
    "a value named as an argument": (
        lambda x: F.gelu(torch.tanh(x), approximate="tanh"), (torch.randn(4, 8),)),
    "sum with alpha": (lambda x, y: torch.add(x, y, alpha=3), (torch.randn(4), torch.randn(4))),
    "difference with alpha": (
        lambda x, y: torch.sub(x, y, alpha=3), (torch.randn(4), torch.randn(4))),
    "mean of whole numbers": (
        lambda i: i.float().mean(1) + i.sum(1, dtype=torch.float), (torch.arange(6)[None],)),
    "flags": (lambda x: (x > 0) & (x < 1) | (x < -1), (torch.randn(9),)),
    "where with numbers": (
        lambda x: torch.where(x > 0, x, -1e30).softmax(-1)
        + torch.where(x > 0, torch.tensor(1.0), torch.tensor(0.0)), (torch.randn(3, 4),)),
    "diff": (lambda x: torch.diff(x, dim=-1, prepend=x[:, :1]), (torch.randn(3, 4),)),
    "new ones": (lambda x: x + x.new_ones(x.shape, dtype=torch.float32), (torch.randn(3, 4),)),
    "grouped queries": (
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, enable_gqa=True),
        (torch.randn(1, 4, 3, 8), torch.randn(1, 2, 3, 8), torch.randn(1, 2, 3, 8))),
    "clamp of whole numbers": (
        lambda i: i.clamp_min(2).clamp_max(4) + i.clamp(min=1) + i.clamp(0, 2) + i.clamp(max=3)
        + (2 * i.float().clamp(0.5, 2.5) + 2 * i.float().clamp(min=1.5)).int(),
        (torch.arange(6),)),
    "topk": (lambda x: torch.topk(x, 2).indices, (torch.randn(3, 5),)),
}  # fmt: skip


class Together(nn.Module):
    """All of them in one program, which is lowered once."""

    def forward(self, *inputs: Tensor) -> dict[str, Tensor]:
        results, rest = {}, list(inputs)
        for name, (function, own) in FUNCTIONS.items():
            taken, rest = rest[: len(own)], rest[len(own) :]
            results[name.replace(" ", "_")] = function(*taken)
        return results


def test_says_what_coremltools_leaves_out(tmp_path: Path) -> None:
    inputs = tuple(x for _, own in FUNCTIONS.values() for x in own)
    program, build = compiled(Together(), inputs, "coreml:cpu:fp32", tmp_path)
    specs = program.signature.inputs
    feed = {spec.name: x.numpy() for spec, x in zip(specs, inputs, strict=True)}
    assert len(checked(program, build, "coreml:cpu:fp32", feed)) == len(FUNCTIONS)


def test_a_query_without_keys_gives_zeros(tmp_path: Path) -> None:
    """As in PyTorch; padding under a sliding window makes such queries."""

    def attend(x: Tensor, keep: Tensor) -> Tensor:
        place = torch.arange(x.shape[1])
        near = (place[:, None] - place).abs() < 2
        mask = near[None, None] & (keep[:, None, None, :] > 0)
        x = x[:, None]
        return F.scaled_dot_product_attention(x, x, x, attn_mask=mask, scale=0.3)

    inputs = (torch.randn(1, 6, 8), torch.tensor([[1, 1, 1, 0, 0, 0]]))
    dims = {name: {1: Dim("length", 2, 6, 12)} for name in ("input_0", "input_1")}
    program, build = compiled(Function(attend), inputs, "coreml:cpu:fp32", tmp_path, dynamic=dims)
    feed = {"input_0": inputs[0].numpy(), "input_1": inputs[1].numpy()}
    (got,) = checked(program, build, "coreml:cpu:fp32", feed).values()
    assert not got[:, :, 4:].any()
    assert got[:, :, :4].all()


def test_names_dtypes_and_ranks_are_those_of_the_signature(tmp_path: Path) -> None:
    from sdk.compilers.mil.frontend import coremltools

    class Borders(nn.Module):
        def forward(self, ids: Tensor, mask: Tensor, number: Tensor) -> dict[str, Tensor]:
            return {"ids": ids + 1, "any": mask.any(), "scaled": number * 2.0, "mask": ~mask}

    inputs = (torch.tensor([[1, -2]]), torch.tensor([True, False]), torch.tensor(1.5))
    program, build = compiled(Borders(), inputs, "coreml:cpu:fp32", tmp_path)
    feed = {"ids": inputs[0].numpy(), "mask": inputs[1].numpy(), "number": inputs[2].numpy()}
    got = checked(program, build, "coreml:cpu:fp32", feed)
    assert {name: (str(x.dtype), x.shape) for name, x in got.items()} == {
        "ids": ("int64", (1, 2)), "any": ("bool", ()), "scaled": ("float32", ()),
        "mask": ("bool", (2,)),
    }  # fmt: skip
    spec = coremltools().models.MLModel(str(build.file.parent), skip_model_load=True).get_spec()
    assert [port.name for port in spec.description.input] == ["ids", "mask", "number"]
    assert [port.name for port in spec.description.output] == [
        "ids_out",
        "value_any",
        "scaled",
        "mask_out",
    ]
    feed["ids"] = feed["ids"] + (1 << 31)
    with pytest.raises(InputError, match="'ids' has numbers that Core ML, which has int32"):
        open_build(build, program, Target.parse("coreml"), threads=1).run(feed)


def test_ranges_of_sizes_are_those_of_the_dims(tmp_path: Path) -> None:
    from sdk.compilers.mil.frontend import coremltools

    dim = Dim("n", 2, 3, 5)
    model = Function(lambda a, b: torch.cat([a, b], 1).softmax(0))
    inputs = (torch.randn(3, 4), torch.randn(3, 2))
    dynamic = {"inputs_0": {0: dim}, "inputs_1": {0: dim}}
    names = [
        spec.name for spec in compiled(model, inputs, "coreml", tmp_path / "a")[0].signature.inputs
    ]
    dynamic = {name: {0: dim} for name in names}
    program, build = compiled(model, inputs, "coreml", tmp_path / "b", dynamic=dynamic)
    for size in (2, 5):
        feed = dict(
            zip(names, (np.random.randn(size, k).astype("float32") for k in (4, 2)), strict=True)
        )
        checked(program, build, "coreml", feed)
    spec = coremltools().models.MLModel(str(build.file.parent), skip_model_load=True).get_spec()
    array = spec.description.input[0].type.multiArrayType
    assert list(array.shape) == [3, 4]
    (first, _) = array.shapeRange.sizeRanges
    assert (first.lowerBound, first.upperBound) == (2, 5)


@pytest.mark.parametrize(
    ("precision", "bits"),
    [
        pytest.param("w8", 8, marks=pytest.mark.slow),
        ("int4", 4),
        ("int2", 2),
        pytest.param("pal6", 6, marks=pytest.mark.slow),
        ("pal4", 4),
    ],
)
def test_weights_stay_compressed(precision: str, bits: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    ids = torch.randint(0, 40, (2, 7))
    target = f"coreml:npu:{precision}"
    program, build = compiled(Words(), ids, target, tmp_path)
    checked(program, build, target, {"ids": ids.numpy()})
    weights = build.file.parent / "Data/com.apple.CoreML/weights/weight.bin"
    count = 40 * 64 + 64 * 96 * 2 + 64 * 32
    scales = count // 32 * (6 if precision == "int2" else 2) if precision in ("int4", "int2") else 0
    assert weights.stat().st_size < count * bits / 8 + scales + 3000  # biases, palettes, headers


def test_quantized_programs_keep_their_integers(tmp_path: Path) -> None:
    from sdk.compilers.mil.evaluator import read_package

    torch.manual_seed(0)
    x = torch.randn(2, 3, 8, 8)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
    for target in ("coreml:npu:int8", "coreml:cpu:int8:iOS17"):
        program, build = compiled(model, x, target, tmp_path / target.replace(":", "-"))
        checked(program, build, target, {"input": x.numpy()})
        kinds = [step.kind for step in read_package(build.file.parent).block.steps]
        assert kinds.count("quantize") == kinds.count("dequantize") == 2, kinds


def test_states_live_on_where_they_are_passed(tmp_path: Path) -> None:
    model, x = Totals(), torch.randn(2, 4)
    program, build = compiled(model, x, "coreml:cpu:fp16", tmp_path)
    assert not model.part.total.any()  # capture left the model as it was
    session = open_build(build, program, Target.parse("coreml:cpu:fp16"), threads=1)
    state: Any = session.make_state()  # type: ignore[attr-defined]
    with torch.no_grad():
        once = model.layer(x).numpy() * 2
    for times in (1, 2, 3):
        got = session.run({"x": x.numpy()}, state=state)["output"]  # type: ignore[call-arg]
        np.testing.assert_allclose(got, once * times, atol=2e-2)
    for _ in range(2):  # without one, each run is the first
        checked(program, build, "coreml:cpu:fp16", {"x": x.numpy()})


def test_states_that_core_ml_has_not_are_refused(tmp_path: Path) -> None:
    model = Totals()
    with pytest.raises(InputError, match=r"The state 'part\.total' cannot be had on iOS17"):
        compiled(model, torch.randn(2, 4), "coreml:cpu:fp16:iOS17", tmp_path / "old")
    model.part.total.fill_(1)
    with pytest.raises(InputError, match=r"buffer 'part\.total', which the model writes to"):
        compiled(model, torch.randn(2, 4), "coreml:cpu:fp16", tmp_path)


@pytest.mark.slow
def test_several_functions_share_their_weights(tmp_path: Path) -> None:
    from sdk.compilers.mil.functions import join
    from sdk.compilers.mil.session import EvaluatorSession

    layer, x = nn.Linear(64, 64), torch.randn(2, 64)
    target = Target.parse("coreml:cpu:fp16")
    made = {
        "plain": compiled(layer, x, str(target), tmp_path / "plain"),
        "squashed": compiled(
            nn.Sequential(layer, nn.Tanh()), x, str(target), tmp_path / "squashed"
        ),
    }
    packages = {name: build.file.parent for name, (_, build) in made.items()}
    joined = join(packages, tmp_path / "joined.mlpackage")
    for name, (program, _) in made.items():
        session = EvaluatorSession(joined, program.signature, target, function=name)
        feed = {"input": x.numpy()}
        assert compare(session.run(feed), program.reference(feed), TOLERANCE["fp16"]).ok
    (weights,) = joined.rglob("weight.bin")
    assert weights.stat().st_size < 1.2 * 64 * 64 * 2


def test_the_same_program_gives_the_same_bytes(tmp_path: Path) -> None:
    model, x = nn.Linear(4, 3), torch.randn(2, 4)
    first, second = (compiled(model, x, "coreml", tmp_path / name)[1] for name in "ab")
    files = [sorted(b.folder.rglob("*")) for b in (first, second)]
    assert len(files[0]) == len(files[1])
    for a, b in zip(*files, strict=True):
        assert a.name == b.name
        assert a.is_dir() or a.read_bytes() == b.read_bytes(), a.name


def test_sources_name_the_line_of_each_operator(tmp_path: Path) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            y = self.layer(x)
            return torch.tanh(y) * 2

    program, build = compiled(Model(), torch.randn(2, 4), "coreml:cpu:fp16", tmp_path)
    session = open_build(build, program, Target.parse("coreml:cpu:fp16"), threads=1)
    lines = {row.kind: build.sources.get(row.operator) for row in session.placement()}
    assert lines["linear"] is not None
    assert lines["linear"].module == "layer"
    assert lines["tanh"] is not None
    assert "return torch.tanh(y) * 2" in lines["tanh"].line


REACH = {
    "fp16": (Function(lambda x: torch.tanh(x @ x.mT)), {"npu": "asked for"}),
    "whole numbers": (Function(lambda x: x + x.argmax(-1)[..., None] // 2), {"cpu": "no int32"}),
    "a product": (Function(lambda x: x.prod(-1)), {"cpu": "no reduce_prod"}),
}


@pytest.mark.parametrize("name", REACH)
def test_what_the_neural_engine_cannot_take_is_placed_on_the_cpu(name: str, tmp_path: Path) -> None:
    model, wanted = REACH[name]
    program, build = compiled(model, torch.randn(3, 2, 4), "coreml:npu:fp16", tmp_path)
    rows = open_build(build, program, Target.parse("coreml:npu:fp16"), threads=1).placement()
    for device, reason in wanted.items():
        assert any(reason in row.reason for row in rows if row.device == device), rows
    if "cpu" not in wanted:
        assert {row.device for row in rows} == {"npu"}


def test_ranges_of_sizes_are_beyond_the_neural_engine(tmp_path: Path) -> None:
    dynamic = {"input": {0: Dim("n", 1, 2, 4)}}
    program, build = compiled(
        nn.Linear(4, 3), torch.randn(2, 4), "coreml:npu:fp16", tmp_path, dynamic=dynamic
    )
    rows = open_build(build, program, Target.parse("coreml:npu:fp16"), threads=1).placement()
    assert {row.device for row in rows} == {"cpu"}
    assert "range of sizes" in rows[0].reason


@pytest.mark.parametrize("arch", ["iOS19", "macOS15"])
def test_unknown_deployment_targets_are_refused(arch: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"(?s)not known.*iOS16, iOS17, iOS18, iOS26"):
        compiled(nn.Linear(4, 3), torch.randn(2, 4), f"coreml:cpu:fp32:{arch}", tmp_path)


def test_groups_need_ios18(tmp_path: Path) -> None:
    target = "coreml:npu:int4:iOS17"
    with pytest.raises(InputError, match="Weights as int4 cannot be had on iOS17"):
        compiled(Words(), torch.randint(0, 40, (2, 7)), target, tmp_path)


def test_dtypes_that_core_ml_lacks_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"(?s)'input' has a dtype that Core ML lacks.*float64"):
        compiled(nn.Linear(4, 3).double(), torch.randn(2, 4).double(), "coreml", tmp_path)


def test_operators_without_a_translation_are_named_with_their_line(tmp_path: Path) -> None:
    class Unusual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.part = Function(lambda x: torch.linalg.svdvals(x))

        def forward(self, x: Tensor) -> Tensor:
            return self.part(x) + 1

    with pytest.raises(UnsupportedOperatorError) as caught:
        compiled(Unusual(), torch.randn(3, 3), "coreml", tmp_path)
    assert "svd" in str(caught.value)
    assert "in module 'part' at test_coreml.py" in str(caught.value.got)


def test_a_session_of_another_signature_or_a_closed_one_says_so(tmp_path: Path) -> None:
    from sdk.compilers.mil.session import EvaluatorSession

    target = Target.parse("coreml")
    program, build = compiled(nn.Linear(4, 3), torch.randn(2, 4), "coreml", tmp_path)
    other, _ = compiled(Words(), torch.randint(0, 40, (2, 7)), "coreml", tmp_path / "other")
    with pytest.raises(SignatureMismatchError, match="are not those of the signature"):
        EvaluatorSession(build.file.parent, other.signature, target)
    session = open_build(build, program, target, threads=1)
    with pytest.raises(EngineError, match="cannot be timed"):
        session.profile({}, runs=1)
    session.close()
    with pytest.raises(EngineError, match="closed"):
        session.run({"input": np.zeros((2, 4), np.float32)})


def test_an_artifact_says_that_an_evaluator_checked_it(tmp_path: Path) -> None:
    import sdk

    model, x = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).eval(), torch.randn(2, 4)
    artifact = sdk.compile(model, inputs=x, target="coreml:npu:fp16", output=tmp_path / "m.edge")
    manifest = json.loads((artifact.path / "manifest.json").read_text())
    assert manifest["candidates"][0]["checked_on"] == "evaluator"
    assert manifest["requires"] == {"deployment": "iOS18"}
    assert "model.mlpackage/Manifest.json" in manifest["files"]
