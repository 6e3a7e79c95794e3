"""The only input check: it says what is wrong, binds named sizes and never casts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, strategies as st

from sdk.errors import InputError
from sdk.signature import DTYPES, Dim, Signature, TensorSpec

BATCH = Dim("batch", 1, 2, 8)
SIGNATURE = Signature(
    (
        TensorSpec("query", "float32", (BATCH, 4)),
        TensorSpec("mask", "bool", (BATCH,)),
        TensorSpec("step", "int64", ()),
    ),
    (TensorSpec("y", "float32", (BATCH,)),),
)


def feed(batch: int = 2, **changes: Any) -> dict[str, Any]:
    """Inputs that fit, some replaced; None leaves one out."""
    arrays: dict[str, Any] = {
        "query": np.zeros((batch, 4), np.float32),
        "mask": np.zeros(batch, bool),
        "step": np.array(3, np.int64),
    } | changes
    return {name: array for name, array in arrays.items() if array is not None}


@pytest.mark.parametrize("batch", [1, 2, 8])
def test_what_fits(batch: int) -> None:
    SIGNATURE.check(feed(batch))


def test_zeros_fit_and_have_the_tuned_sizes() -> None:
    zeros = SIGNATURE.zeros()
    SIGNATURE.check(zeros)
    assert {name: array.shape for name, array in zeros.items()} == {
        "query": (2, 4),
        "mask": (2,),
        "step": (),
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mask": None}, "'mask' is missing"),
        ({"extra": np.zeros(1)}, r"does not have: \['extra'\]"),
        ({"query": [[0.0] * 4] * 2}, "not a NumPy array"),
        ({"step": 3}, "not a NumPy array"),
        ({"step": np.int64(3)}, "not a NumPy array"),
        ({"query": np.zeros((2, 4))}, "wrong dtype"),
        ({"query": np.zeros((2, 4), ">f4")}, "wrong dtype"),
        ({"query": np.zeros((2, 4), object)}, "wrong dtype"),
        ({"step": np.array(3, np.int32)}, "wrong dtype"),
        ({"query": np.zeros((2, 5), np.float32)}, "wrong shape"),
        ({"query": np.zeros((2, 4, 1), np.float32)}, "wrong shape"),
        ({"query": np.zeros((0, 4), np.float32)}, "wrong shape"),
        ({"query": np.zeros((9, 4), np.float32)}, "wrong shape"),
        ({"step": np.zeros(1, np.int64)}, "wrong shape"),
    ],
)
def test_what_does_not_fit(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        SIGNATURE.check(feed(**changes))
    assert caught.value.expected
    assert caught.value.fix


def test_names_that_are_no_text() -> None:
    with pytest.raises(InputError, match="does not have"):
        SIGNATURE.check({**feed(), 7: np.zeros(1), "z": np.zeros(1)})  # type: ignore[dict-item]


def test_a_named_size_holds_across_inputs() -> None:
    with pytest.raises(InputError, match="wrong shape") as caught:
        SIGNATURE.check(feed(mask=np.zeros(3, bool)))
    assert "with {'batch': 2} from the other inputs" in str(caught.value.expected)


def test_an_input_is_not_explained_by_itself() -> None:
    with pytest.raises(InputError) as caught:
        SIGNATURE.check(feed(query=np.zeros((3, 5), np.float32)))
    assert "other inputs" not in str(caught.value.expected)


def test_a_named_size_holds_within_one_input() -> None:
    square = Signature((TensorSpec("x", "float32", (BATCH, BATCH)),), ())
    square.check({"x": np.zeros((3, 3), np.float32)})
    with pytest.raises(InputError):
        square.check({"x": np.zeros((3, 4), np.float32)})


@given(st.sampled_from(DTYPES), st.sampled_from(DTYPES))
def test_never_casts(declared: str, given_dtype: str) -> None:
    signature = Signature((TensorSpec("x", declared, (1,)),), ())
    array = np.zeros(1, given_dtype)
    if declared == given_dtype:
        signature.check({"x": array})
    else:
        with pytest.raises(InputError, match="wrong dtype"):
            signature.check({"x": array})


@given(st.integers(-3, 12), st.integers(-3, 12), st.integers(-3, 12))
def test_dim_bounds(low: int, opt: int, high: int) -> None:
    if not 1 <= low <= opt <= high:
        with pytest.raises(InputError):
            Dim("n", low, opt, high)
        return
    dim = Dim("n", low, opt, high)
    assert [size for size in range(15) if size in dim] == list(range(low, high + 1))


@pytest.mark.parametrize(
    ("name", "sizes"),
    [("2x", (1, 1, 2)), ("", (1, 1, 2)), ("n", (1.5, 2, 3)), ("n", (1, 1, float("inf"))),
     ("n", (True, 1, 2)), ("n", ("1", "2", "3"))],
)  # fmt: skip
def test_unusable_dims(name: str, sizes: tuple[Any, Any, Any]) -> None:
    with pytest.raises(InputError, match="not usable"):
        Dim(name, *sizes)


@pytest.mark.parametrize(
    ("name", "dtype", "shape"),
    [("", "float32", ()), ("x", "float31", ()), ("x", "object", ()), ("x", "<f4", ()),
     ("x", "float32", (-1,))],
)  # fmt: skip
def test_unusable_tensors(name: str, dtype: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="not usable"):
        TensorSpec(name, dtype, shape)


def test_names_are_unique_on_each_side() -> None:
    x = TensorSpec("x", "float32", ())
    Signature((x,), (x,))
    with pytest.raises(InputError, match="share a name"):
        Signature((x, x), ())
