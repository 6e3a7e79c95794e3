"""The search on an engine: what it keeps and says, interrupted, resumed, damaged, misused.

On the reference engine, which lowers in no time; the search is the same for all engines.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import sdk
from sdk import pipeline
from sdk.cli import main
from sdk.search import run
from sdk.search.cache import CacheWarning
from sdk.search.layers import layer_times
from sdk.search.result import Search

PRECISIONS = ("fp32", "fp16", "bf16", "int8", "w8", "int4", "int2")
FAST_INT8 = {"fp32": 100.0, "fp16": 300.0, "bf16": 300.0, "int8": 50.0}
Tune = Callable[..., Search]


class Fragile(nn.Module):
    """The layer `wide` reads small values beside a large one, which eight bits cannot hold."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.first, self.wide, self.last = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        with torch.no_grad():
            self.wide.weight[:, 0] = 0
        self.register_buffer("scale", torch.tensor([1000.0] + [1.0] * 7))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.wide(torch.sigmoid(self.first(x)) * self.scale))


FEEDS = [torch.randn(16, 8, generator=torch.Generator().manual_seed(i)) for i in range(8)]
MODEL = Fragile().eval()


def closeness(predict: Callable[[Any], Any]) -> float:
    """1 minus the largest relative error against PyTorch."""
    with torch.no_grad():
        wants = [MODEL(feed).numpy() for feed in FEEDS]
    errors = [
        np.abs(predict(feed.numpy()) - want).max() / np.abs(want).max()
        for feed, want in zip(FEEDS, wants, strict=True)
    ]
    return 1.0 - float(max(errors))


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Make the builds' medians what the test says, in microseconds; others take 200."""

    def set_to(**medians: float) -> None:
        def sample(calls: dict[str, Any], **_: Any) -> dict[str, list[float]]:
            precisions = {name: name.partition(" #")[0].rpartition(":")[2] for name in calls}
            return {name: [medians.get(p, 200.0)] * 5 for name, p in precisions.items()}

        monkeypatch.setattr(pipeline, "sample", sample)

    set_to(**FAST_INT8)
    return set_to


@pytest.fixture(autouse=True, scope="module")
def no_profile() -> Iterator[None]:
    """The profiler's figures are those of the moment; so would be the mixtures made after them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "layer_times", lambda *_: {})
        yield


@pytest.fixture(scope="module")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache in which every candidate of the plain search is."""
    root = tmp_path_factory.mktemp("warm")
    found = search(root / "cache", root / "m.edge")
    assert (found.built, found.reused) == (len(found.candidates), 0)
    return root / "cache"


@pytest.fixture
def cache(warm: Path, tmp_path: Path) -> Path:
    return shutil.copytree(warm, tmp_path / "cache")


@pytest.fixture
def tune(cache: Path, tmp_path: Path) -> Tune:
    """Search with a warm cache; whatever fails must leave nothing but the cache behind."""

    def call(**options: Any) -> Search:
        try:
            return search(cache, tmp_path / "m.edge", **options)
        except (sdk.EdgeError, ZeroDivisionError, KeyboardInterrupt):
            assert {path.name for path in tmp_path.iterdir()} <= {"cache"}
            raise

    return call


def search(root: Path, output: Path, **options: Any) -> Search:
    settings = {
        "target": "torch:cpu",
        "inputs": FEEDS[0],
        "calibration": FEEDS,
        "metric": closeness,
        "max_drop": 0.05,
        "cache": root,
        "threads": 1,
        "progress": lambda *_: None,
        **options,
    }
    return sdk.tune(MODEL, output=output, **settings)


def by_precision(found: Search) -> dict[str, list[Any]]:
    rows: dict[str, list[Any]] = {}
    for candidate in found.candidates:
        rows.setdefault(sdk.Target.parse(candidate.target).precision, []).append(candidate)
    return rows


def test_the_sensitive_layer_goes_to_float(tune: Tune) -> None:
    found = tune()
    manifest = sdk.Artifact.open(found.artifact.path).manifest
    assert (manifest.requested, manifest.target) == ("torch:cpu:auto", "torch:cpu:int8")
    assert manifest.kept.float_layers == ("wide",)
    assert manifest.kept.reason.startswith("the fastest of")
    assert manifest.kept.fidelity is not None
    assert manifest.kept.fidelity.measured is not None
    assert manifest.kept.fidelity.measured > 0.95
    assert [(row.name, row.precision) for row in found.layers] == [
        ("wide", "fp32"),
        ("last", "int8"),
        ("first", "int8"),
    ]
    assert found.layers[0].cost > 10 * found.layers[1].cost


def test_every_candidate_is_there_with_its_reason(tune: Tune) -> None:
    rows = by_precision(tune())
    assert tuple(rows) == PRECISIONS
    assert all(candidate.reason for found in rows.values() for candidate in found)
    whole, mixed = rows["int8"]
    assert "loses too much: closeness" in whole.reason
    assert whole.latency is None
    assert mixed.kept
    assert "fp32 is slower than int8 with 1 layer in float: 100 us" in rows["fp32"][0].reason
    assert "8 inputs, which groups of 32 do not divide" in rows["int4"][0].reason
    assert sum(candidate.kept for found in rows.values() for candidate in found) == 1


def test_a_warm_cache_builds_nothing_and_computes_the_same(tune: Tune, tmp_path: Path) -> None:
    found = tune()
    assert (found.built, found.reused) == (0, len(found.candidates))
    fidelity = found.artifact.manifest.kept.fidelity
    assert fidelity is not None
    with sdk.load(found.artifact.path, threads=1) as model:
        assert model.check_golden().ok
        assert closeness(model.predict) == pytest.approx(fidelity.measured)
    cold = search(tmp_path / "other", tmp_path / "cold.edge")
    assert cold.built == len(cold.candidates)
    assert figures(found) == figures(cold)


def figures(found: Search) -> list[Any]:
    """What does not depend on the moment."""
    return [(c.target, c.bytes, c.parity, c.fidelity, c.float_layers) for c in found.candidates]


def test_latencies_are_measured_anew(tune: Tune, clock: Callable[..., None]) -> None:
    clock(fp32=10.0)
    assert tune().artifact.manifest.target == "torch:cpu:fp32"


def test_a_network_that_is_slower_in_int8_stays_in_float(
    tune: Tune, clock: Callable[..., None]
) -> None:
    clock(**{**FAST_INT8, "int8": 150.0})
    found = tune()
    assert found.artifact.manifest.target == "torch:cpu:fp32"
    mixed = by_precision(found)["int8"][1]
    assert "int8 with 1 layer in float is slower than fp32: 150 us against 100 us" in mixed.reason
    assert {layer.precision for layer in found.layers} == {"fp32"}


def test_layers_that_are_slower_quantized_go_to_float(
    tune: Tune, monkeypatch: pytest.MonkeyPatch
) -> None:
    def times(built: Any, _feed: Any) -> dict[str, float]:
        lost = 4.0 if built.target.precision == "int8" else 0.0
        return {"first": 10.0, "wide": 10.0 + lost, "last": 10.0 + lost}

    monkeypatch.setattr(run, "layer_times", times)
    found = tune()
    mixtures = [candidate.float_layers for candidate in by_precision(found)["int8"]]
    assert mixtures == [(), ("wide",), ("last", "wide")]
    (row,) = [layer for layer in found.layers if layer.name == "last"]
    assert (row.float_us, row.quantized_us) == (10.0, 14.0)


def test_without_a_metric_the_outputs_decide(tune: Tune) -> None:
    found = tune(metric=None, max_drop=None)
    whole, mixed = by_precision(found)["int8"]
    assert "too far from fp32" in whole.reason
    assert mixed.float_layers == ("wide",)
    assert found.metric is None


def test_no_calibration_leaves_static_precisions_out(tune: Tune) -> None:
    found = tune(calibration=())
    (row,) = by_precision(found)["int8"]
    assert row.reason.startswith("int8 needs calibration data.")
    assert not row.kept
    assert found.layers == ()


def test_interrupted_and_taken_up(tmp_path: Path) -> None:
    """Stopped while the fifth candidate is lowered; the four before it are not built again."""

    def stop(what: str, _done: int, _total: int) -> None:
        if "candidate 5" in what and "lower" in what:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as caught:
        search(tmp_path / "cache", tmp_path / "m.edge", progress=stop)
    (note,) = caught.value.__notes__
    assert str(tmp_path / "cache") in note
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]
    found = search(tmp_path / "cache", tmp_path / "m.edge")
    assert (found.built, found.reused) == (len(found.candidates) - 4, 4)
    assert found.artifact.manifest.kept.float_layers == ("wide",)


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def test_a_flipped_byte_is_told_of_and_built_again(tune: Tune, cache: Path) -> None:
    flip(next(cache.glob("builds/*/files/files/*")))
    with pytest.warns(CacheWarning, match="is damaged: it is made again"):
        found = tune()
    assert found.built == 1


@pytest.mark.parametrize(
    "change",
    [{"calibration": FEEDS[:7]}, {"inputs": FEEDS[1]}, {"keep_float": ["last"]}],
    ids=["calibration", "inputs", "keep_float"],
)
def test_other_data_or_settings_are_other_builds(change: dict[str, Any], tune: Tune) -> None:
    assert tune(**change).built > 0


def test_the_engines_profiler_tells_the_times_of_layers(tmp_path: Path) -> None:
    from sdk.compilers import lower
    from sdk.compilers.capture import capture
    from sdk.runtimes import open_session

    target = sdk.Target("torch")
    program = capture(MODEL, FEEDS[0], None)
    build = lower(program, target, tmp_path / "build")
    session = open_session(build.file, program.signature, target, threads=1)
    built: Any = SimpleNamespace(session=session, build=build)
    times = layer_times(built, {"x": FEEDS[0].numpy()})
    assert set(times) >= {"first", "wide", "last"}
    assert all(0 < times[name] < 1e5 for name in ("first", "wide", "last"))


def test_another_constant_is_another_program() -> None:
    from sdk.compilers.capture import capture

    class Shift(nn.Module):
        def __init__(self, by: float) -> None:
            super().__init__()
            self.by = torch.full((3,), by)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.by

    digests = {capture(Shift(by), torch.zeros(3), None).digest() for by in (1.0, 1.0, 2.0)}
    assert len(digests) == 2


def test_compile_searches_where_the_precision_is_auto(
    warm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(warm, tmp_path / "edge-sdk")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    lowered: list[str] = []
    artifact = sdk.compile(
        MODEL,
        inputs=FEEDS[0],
        target="torch:cpu:auto",
        output=tmp_path / "m.edge",
        calibration=FEEDS,
        metric=closeness,
        max_drop=0.05,
        threads=1,
        progress=lambda what, *_: lowered.append(what) if "lower" in what else None,
    )
    assert artifact.manifest.target == "torch:cpu:int8"
    assert artifact.manifest.requested == "torch:cpu:auto"
    assert lowered == []


def test_no_cache_keeps_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    found = search(tmp_path, tmp_path / "m.edge", cache=False, calibration=())
    assert (found.cache, found.reused) == (None, 0)
    assert not (tmp_path / "xdg").exists()


def test_a_named_metric_is_remembered(tune: Tune) -> None:
    calls: list[int] = []

    def counted(predict: Callable[[Any], Any]) -> float:
        calls.append(1)
        return closeness(predict)

    tune(metric=counted, metric_key="closeness, 8 feeds")
    first = len(calls)
    tune(metric=counted, metric_key="closeness, 8 feeds", overwrite=True)
    assert first > 3
    assert len(calls) == first
    tune(metric=counted, overwrite=True)
    assert len(calls) == 2 * first


def test_a_metric_that_raises_is_the_callers(tune: Tune) -> None:
    with pytest.raises(ZeroDivisionError):
        tune(metric=lambda _predict: 1 / 0)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), None, "good", np.ones(2)])
def test_a_metric_that_is_no_number_is_refused(value: Any, tune: Tune) -> None:
    with pytest.raises(sdk.InputError, match="not a finite number for torch:cpu:fp32"):
        tune(metric=lambda _predict: value)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"max_drop": -0.1}, "max_drop is not usable"),
        ({"max_drop": float("nan")}, "max_drop is not usable"),
        ({"max_latency_us": -1.0}, "max_latency_us is not usable"),
        ({"max_latency_us": float("nan")}, "max_latency_us is not usable"),
        ({"max_bytes": 0}, "max_bytes is not usable"),
        ({"target": "torch:cpu:int8"}, "tries all precisions, not int8 alone"),
        ({"cache": __file__}, "is not usable"),
    ],
)
def test_unusable_budgets_targets_and_caches(
    options: dict[str, Any], words: str, tune: Tune
) -> None:
    with pytest.raises(sdk.InputError, match=words):
        tune(**options)


def test_budgets_belong_to_the_search(tmp_path: Path) -> None:
    with pytest.raises(sdk.InputError, match="budget of the search") as caught:
        sdk.compile(
            MODEL, inputs=FEEDS[0], target="torch:cpu:fp16", output=tmp_path / "m.edge", max_bytes=9
        )
    assert "torch:cpu:auto" in str(caught.value)


def test_budgets_that_nothing_meets(tune: Tune) -> None:
    with pytest.raises(sdk.BudgetError, match="within the budgets") as caught:
        tune(max_latency_us=20.0)
    assert "torch:cpu:int8: 50 us against 20 us allowed" in str(caught.value)


def test_nothing_that_passes_is_a_parity_error(tune: Tune, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run.Tuner, "finalists", [])
    with pytest.raises(sdk.ParityError, match="No precision of torch:cpu:auto") as caught:
        tune()
    assert "loses too much" in str(caught.value)


def test_reports(tune: Tune, tmp_path: Path) -> None:
    found = tune()
    found.save(tmp_path / "tune.html")
    found.save(tmp_path / "tune.json")
    text = (tmp_path / "tune.html").read_text()
    assert "http://" not in text.replace("http://www.w3.org", "")
    assert "https://" not in text
    for words in ("<svg", "wide", "loses too much: closeness", "Sensitivity of the layers"):
        assert words in text
    data = json.loads((tmp_path / "tune.json").read_text())
    assert [row["on_front"] for row in data["candidates"]].count(True) == len(found.front)
    assert data["layers"][0]["name"] == "wide"
    with pytest.raises(sdk.InputError, match="cannot be written"):
        found.save(tmp_path / "tune.pdf")


NETS = """
import numpy as np, torch
from torch import nn

def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))

def example_inputs():
    return torch.zeros(1, 4)

def size(predict):
    return 1.0 - float(np.abs(predict(np.zeros((1, 4), np.float32))).max() > 100)

def broken(predict):
    raise ValueError("no labels")
"""


@pytest.fixture
def edge(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., tuple[int, str, str]]]:
    """Run `edge tune` on a module of the current folder."""
    (tmp_path / "searched_nets.py").write_text(NETS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))

    def call(*words: str) -> tuple[int, str, str]:
        fixed = ("tune", "searched_nets:net", "-t", "torch:cpu", "-o", "n.edge", "--cache", "c")
        code = main([*fixed, "--threads", "1", *words])
        return code, *capfd.readouterr()

    yield call
    sys.modules.pop("searched_nets", None)


def test_the_command(edge: Callable[..., tuple[int, str, str]]) -> None:
    metric = ("--metric", "searched_nets:size", "--max-drop", "0.1")
    code, out, err = edge("--json", "--report", "r.html", *metric)
    data = json.loads(out)
    assert code == 0, err
    assert data["requested"] == "torch:cpu:auto"
    assert data["metric"] == "size"
    assert "candidate 2 of 7, fp16" in err
    assert "<svg" in Path("r.html").read_text()
    flip(next(Path("c").glob("builds/*/files/files/*")))
    code, out, err = edge("--overwrite", *metric)
    assert code == 0, err
    assert "is damaged: it is made again" in err
    assert "Pareto front" in out
    assert f"1 built, {len(data['candidates']) - 1} from the cache" in out


def test_the_command_used_wrongly(
    edge: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    code, _, err = edge("--metric", "searched_nets:broken", "--max-drop", "0.1")
    assert code == 2
    assert "The metric searched_nets:broken failed" in err
    assert "ValueError: no labels" in err
    assert edge("--report", "r.pdf")[0] == 2
    code, _, err = edge("--max-bytes", "10")
    assert code == 1
    assert "allowed" in err

    def stop(*_args: Any, **_options: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "time_builds", stop)
    code, _, err = edge()
    assert code == 130
    assert "The same call with the same data takes them up" in err
