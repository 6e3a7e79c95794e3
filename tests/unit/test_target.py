"""The target grammar: `str` and `parse` are inverses, and what does not parse says what is near."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from sdk.errors import EdgeError, InputError
from sdk.target import DEVICES, ENGINES, PRECISIONS, Target

ARCH = st.none() | st.text(min_size=1).filter(lambda text: ":" not in text)
TARGETS = st.builds(
    Target,
    st.sampled_from(ENGINES),
    st.sampled_from(DEVICES),
    st.sampled_from(PRECISIONS),
    ARCH,
)


@given(TARGETS)
def test_text_round_trip(target: Target) -> None:
    assert Target.parse(str(target)) == target
    assert Target.parse(target) is target


@given(st.text())
def test_any_text_is_a_target_or_an_input_error(text: str) -> None:
    try:
        target = Target.parse(text)
    except InputError:
        return
    assert str(target).startswith(text)


def test_defaults() -> None:
    assert Target.parse("openvino") == Target("openvino", "cpu", "fp32", None)
    assert str(Target.parse("torch:gpu")) == "torch:gpu:fp32"
    assert Target.parse("tensorrt:gpu:fp16:sm_90").arch == "sm_90"


@pytest.mark.parametrize(
    ("text", "near"),
    [
        ("openvno", "openvino"),
        ("OpenVINO:cpu", "openvino"),
        ("onnx-runtime", "onnxruntime"),
        (" torch ", "torch"),
        ("torch:CPU", "cpu"),
        ("torch:cpu:bf-16", "bf16"),
        ("torch:cpu:int", "int8"),
        ("torch:cpu:INT8", "int8"),
    ],
)
def test_what_is_near_is_named(text: str, near: str) -> None:
    with pytest.raises(InputError) as caught:
        Target.parse(text)
    assert str(caught.value.fix).startswith(f"did you mean '{near}'")


def test_far_away_lists_all() -> None:
    with pytest.raises(InputError) as caught:
        Target.parse("zzz")
    assert all(engine in str(caught.value.fix) for engine in ENGINES)


@pytest.mark.parametrize("text", ["", ":", "torch:", "torch::int8", "a:b:c:d:e", None, 3, b"torch"])
def test_no_target(text: object) -> None:
    with pytest.raises(InputError, match="does not parse"):
        Target.parse(text)  # type: ignore[arg-type]


@pytest.mark.parametrize("arch", ["", "a:b"])
def test_an_arch_that_would_not_parse_back(arch: str) -> None:
    with pytest.raises(EdgeError):
        Target("torch", arch=arch)


def test_with_precision_changes_nothing_else() -> None:
    target = Target.parse("tensorrt:gpu:fp16:sm_90")
    assert str(target.with_precision("int8")) == "tensorrt:gpu:int8:sm_90"
