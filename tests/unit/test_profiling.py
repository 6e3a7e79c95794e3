"""A profile's arithmetic, origins, files and trace, on records made by hand, with no engine."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

import sdk
from sdk.accounting import account
from sdk.attribution import Origin, attribute
from sdk.footprint import Footprint
from sdk.profiling import Operator, Profile, Span, Throughput, _timeline
from sdk.report import histogram, module_tree, render, show_size, show_time
from sdk.runtimes.session import CallTime, EngineProfile, OperatorTime, Placement
from sdk.structure import from_json, to_json
from sdk.timing import Latency
from sdk.trace import trace_events

EVIL = "<script>alert('x')</script>&\"quoted\""
SOURCES = {
    "node_conv": ("stem.0", "aten.conv2d.default", "net.py:3: x = self.stem(x)"),
    "n0": ("stem.1", "aten.hardswish.default", "net.py:3: x = self.stem(x)"),
    "node_conv_1": ("head.0", "aten.conv2d.default", "net.py:4: x = self.head(x)"),
    "node_relu": ("head", "aten.relu.default", "net.py:4: x = self.head(x)"),
    "node_mean": ("", "aten.mean.dim", "net.py:5: return x.mean((2, 3))"),
}


def _operator_time(
    name: str, kind: str, *durations: float, nodes: tuple[str, ...] = ()
) -> OperatorTime:
    return OperatorTime(name, kind, "cpu", durations, (0.0,) * len(durations), nodes or (name,))


def _engine_profile(*walls: float) -> EngineProfile:
    """Calls of 10 us of SDK and 5 us of binding; operators take 80 % of the rest."""
    calls = tuple(CallTime(wall, wall - 10, 5, wall - 15, engine_start=7) for wall in walls)
    busy = tuple(0.8 * (wall - 15) for wall in walls)
    halves = tuple(time / 2 for time in busy)
    return EngineProfile(
        calls,
        (
            OperatorTime("a", "Conv", "cpu", halves, (0.0,) * len(walls)),
            OperatorTime("b", "Relu", "cpu", halves, halves),
        ),
        framework=10,
    )


def _profile(name: str = "net") -> Profile:
    seen = _engine_profile(100, 110, 120)
    latency = Latency.of([90.0, 100.0, 110.0])
    origin = Origin(("stem.0", "stem.1"), ("aten.conv2d.default",), f"{EVIL}: code", ("a",), "name")
    return Profile(
        name=name,
        target="onnxruntime:cpu:fp32",
        created="2026-01-01T00:00:00+00:00",
        threads=1,
        feed={"x": "float32[1, 3, 8, 8]"},
        files={"model.onnx": 1000, "golden.safetensors": 234},
        latency=latency,
        walls=(90.0, 100.0, 110.0),
        throughput=(Throughput(batch=1, latency=latency, per_second=1e4),),
        accounting=account(seen, 100),
        operators=(
            Operator(
                name="a", kind="Conv", device="cpu", microseconds=38, share=0.5, origin=origin
            ),
            Operator(
                name="b",
                kind="Relu",
                device="cpu",
                microseconds=38,
                share=0.5,
                origin=Origin((), (), "", (), "unknown"),
            ),
        ),
        timeline=_timeline(seen),
        placement=(Placement("a", "Conv", "cpu", "jit", EVIL),),
        footprint=Footprint(
            engine_ms=30,
            load_ms=5,
            calls=(900.0, 300.0, *[100.0] * 18),
            resident_start=30_000_000,
            resident_engine=50_000_000,
            resident_loaded=55_000_000,
            resident_peak=60_000_000,
        ),
        environment={"processor": "A & B"},
        notes=(EVIL,),
    )


def test_parts_are_measured_and_add_up() -> None:
    books = account(_engine_profile(100, 110, 150), plain_median=100)
    assert books.operators == pytest.approx(0.8 * 105)
    assert (books.engine, books.binding) == (pytest.approx(0.2 * 105), pytest.approx(5))
    assert books.wall == pytest.approx(120)
    assert books.total + books.gap == pytest.approx(books.wall)
    assert books.adds_up
    assert books.slowdown == pytest.approx(1.1)


def test_time_that_no_part_has_is_a_gap_with_its_reason() -> None:
    seen = _engine_profile(100, 100)
    slow = tuple(replace(call, wall=call.wall + 20) for call in seen.calls)
    books = account(replace(seen, calls=slow), plain_median=120)
    assert books.gap == pytest.approx(20)
    assert not books.adds_up
    assert any("in none of the parts" in text for text in books.remarks)


def test_operators_that_overlap_are_not_hidden_in_another_part() -> None:
    seen = _engine_profile(100, 100)
    twice = replace(seen, operators=(*seen.operators, *seen.operators))
    books = account(twice, plain_median=100)
    assert books.engine == 0
    assert books.gap == pytest.approx(85 - 2 * 0.8 * 85)
    assert not books.adds_up
    assert any("overlap" in text for text in books.remarks)


def test_means_and_not_medians_are_added() -> None:
    """The two operators are slow in different calls: the sum of their medians misses a third."""
    seen = EngineProfile(
        tuple(CallTime(120, 110, 5, 100) for _ in range(3)),
        (_operator_time("a", "Conv", 80, 10, 10), _operator_time("b", "Relu", 10, 80, 10)),
        framework=10,
    )
    assert account(seen, plain_median=120).operators == pytest.approx(200 / 3)


@pytest.mark.parametrize(
    ("name", "kind", "nodes", "modules", "how"),
    [
        ("node_conv", "Conv", (), ("stem.0",), "name"),
        ("node_conv_nchwc", "Conv", (), ("stem.0",), "name"),
        ("node_conv_1_token_7", "QLinearConv", (), ("head.0",), "name"),
        ("node_conv", "Convolution", ("node_conv", "n0"), ("stem.0", "stem.1"), "name"),
        ("node_mean/Reduce", "ReduceMean", (), ("",), "name"),
    ],
)
def test_an_operator_alone_is_traced_by_its_name(
    name: str, kind: str, nodes: tuple[str, ...], modules: tuple[str, ...], how: str
) -> None:
    (origin,) = attribute([_operator_time(name, kind, 1.0, nodes=nodes)], SOURCES)
    assert (origin.modules, origin.how) == (modules, how)


def test_without_a_record_nothing_is_traced() -> None:
    (origin,) = attribute([_operator_time("node_conv", "Conv", 1.0)], {})
    assert (origin.modules, origin.how) == ((), "unknown")


def test_names_of_the_engines_making_are_traced_by_their_place() -> None:
    rows = [
        _operator_time("node_conv_token_1", "QLinearConv", 1.0),
        _operator_time("HardSigmoid_17", "HardSigmoid", 1.0),
        _operator_time("Transpose", "Transpose", 1.0),
        _operator_time("node_relu_nchwc", "Conv", 1.0),
        _operator_time("node_mean", "ReduceMean", 1.0),
    ]
    found = attribute(rows, SOURCES)
    assert [origin.how for origin in found] == ["name", "between", "neighbour", "name", "name"]
    assert found[1].modules == ("stem.1",)
    assert found[2].modules == found[3].modules, "a change of layout counts to the operator behind"
    assert found[3].modules == ("head.0", "head"), "a Conv named after the relu that it took in"


def test_a_name_that_only_begins_like_a_node_is_not_taken() -> None:
    (origin,) = attribute([_operator_time("node_conv_12_nchwc", "Conv", 1.0)], SOURCES)
    assert origin.how != "name"


def test_the_module_tree_sums_what_is_below() -> None:
    tree = {bar.detail: bar for bar in module_tree(_profile().operators)}
    assert list(tree) == ["stem", "stem.0", "(not traced)"]
    assert tree["stem"].microseconds == tree["stem.0"].microseconds == 38
    assert tree["stem"].share + tree["(not traced)"].share == pytest.approx(1)


def test_events_of_the_trace_nest_in_the_call() -> None:
    trace = json.loads(json.dumps(trace_events(_profile()), allow_nan=False))
    events = [event for event in trace["traceEvents"] if event["ph"] == "X"]
    ends = {event["name"]: (event["ts"], event["ts"] + event["dur"]) for event in events}
    for inner, outer in [
        ("binding", "predict"),
        ("engine", "binding"),
        ("a", "engine"),
        ("b", "engine"),
    ]:
        assert ends[outer][0] <= ends[inner][0]
        assert ends[inner][1] <= ends[outer][1] + 1e-3
    assert ends["a"][1] <= ends["b"][0] + 1e-3, "operators follow each other"
    named = {event["tid"]: event["args"]["name"] for event in trace["traceEvents"]
             if event["name"] == "thread_name"}  # fmt: skip
    assert set(named.values()) == {"call", "operators"}
    assert {event["tid"] for event in events} == set(named)


def test_means_that_exceed_one_call_are_scaled_into_it() -> None:
    seen = _engine_profile(100, 100, 400)
    mean = tuple(
        OperatorTime(r.operator, r.kind, r.device, (200.0,) * 3, (0.0,) * 3) for r in seen.operators
    )
    calls = tuple(replace(call, engine_start=None) for call in seen.calls)
    spans = {span.name: span for span in _timeline(replace(seen, calls=calls, operators=mean))}
    engine = spans["engine"]
    assert spans["a"].start >= engine.start
    assert spans["a"].start + spans["a"].duration <= engine.start + engine.duration + 1e-9


class _Page(HTMLParser):
    """Collects what a browser would fetch, the tags, and the text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.tags: list[str] = []
        self.text: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.fetched += [
            f"{tag} {key}" for key, _ in attrs if key in ("src", "href", "srcset", "data")
        ]

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def test_the_report_needs_no_network_and_escapes_what_it_shows() -> None:
    text = render(_profile(EVIL))
    page = _Page(text)
    assert not page.fetched
    assert not re.search(r"https?:|//[a-z]|@import|url\(", text)
    assert page.tags.count("script") == 1, "text from the profile became a tag"
    assert EVIL in page.text
    assert "The parts add up" in text


def test_the_report_says_when_the_parts_do_not_add_up() -> None:
    profile = _profile()
    books = replace(profile.accounting, gap=20.0, remarks=("20 us are missing.",))
    text = render(replace(profile, accounting=books))
    assert "The parts do not add up" in text
    assert "20 us are missing." in text


def test_the_report_of_a_system_without_proc_says_so() -> None:
    profile = _profile()
    blind = replace(profile.footprint, resident_peak=0)
    assert "does not tell the resident memory" in render(replace(profile, footprint=blind))


def test_saves_json_with_the_figures_and_reads_back(tmp_path: Path) -> None:
    profile = _profile()
    profile.save(tmp_path / "deep" / "profile.json")
    data = json.loads((tmp_path / "deep" / "profile.json").read_text())
    assert data["p50_us"] == 100
    assert data["artifact_bytes"] == 1234
    assert data["adds_up"] is True
    assert from_json(Profile, data["profile"], "profile").operators == profile.operators
    assert to_json(profile) == data["profile"]


def test_refuses_other_suffixes_and_leaves_no_half_file(tmp_path: Path) -> None:
    profile = _profile()
    for save, name in ((profile.save, "report.pdf"), (profile.save_trace, "trace.html")):
        with pytest.raises(sdk.InputError, match="cannot be written"):
            save(tmp_path / name)
    (tmp_path / "taken.json").mkdir()
    with pytest.raises(sdk.InputError, match="could not be written"):
        profile.save(tmp_path / "taken.json")
    assert [path.name for path in tmp_path.iterdir()] == ["taken.json"]


def test_counts_the_calls_until_steady() -> None:
    footprint = _profile().footprint
    assert footprint.first_call == 900
    assert footprint.calls_to_steady == 0, "the median of the first five is steady already"
    slow = replace(footprint, calls=(900.0,) * 4 + (100.0,) * 16)
    assert slow.calls_to_steady == 2


def test_shows_figures_with_three_digits_and_a_unit() -> None:
    assert [show_time(t) for t in (0, 1.234, 999, 12_345, 2.5e6)] == [
        "0 µs", "1.23 µs", "999 µs", "12.3 ms", "2.5 s"
    ]  # fmt: skip
    assert [show_size(n) for n in (12, 1234, 5_600_000, 7.8e9)] == [
        "12 B",
        "1.23 kB",
        "5.6 MB",
        "7.8 GB",
    ]


def test_the_histogram_holds_every_call_or_says_how_many_it_leaves_out() -> None:
    walls = (*(100.0 + i for i in range(99)), 9000.0)
    plot = histogram(walls)
    assert sum(bar["count"] for bar in plot["bars"]) + plot["beyond"] == len(walls)
    assert plot["beyond"] == 1
    assert histogram((5.0,) * 3)["bars"][0]["count"] == 3


def test_runs_must_be_positive() -> None:
    with pytest.raises(sdk.InputError, match="nothing to measure"):
        sdk.profile("not-opened.edge", runs=0)


def test_the_timeline_is_the_median_call() -> None:
    assert _timeline(_engine_profile(300, 100, 200))[0] == Span(
        name="predict", track="call", start=0.0, duration=200
    )
