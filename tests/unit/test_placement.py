"""The policy on operators that the target's device does not run, and their shares of the time."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest

from sdk.errors import EngineError, InputError, UnsupportedOperatorError
from sdk.placement import FallbackWarning, check_policy, enforce, place
from sdk.runtimes.session import EngineProfile, OperatorTime, Placement
from sdk.target import Target

TARGET = Target.parse("onnxruntime:npu:int8")
ON = Placement("conv_1", "Conv", "npu", "HTP", "asked for", ("conv_1",))
OFF = Placement("erf_1", "Erf", "cpu", "Erf", "npu has no kernel for it", ("erf_1",))
FEED = {"x": np.zeros(1, np.float32)}


class Timed:
    """Two operators, of which the second takes three quarters of the time."""

    def __init__(self, error: EngineError | None = None) -> None:
        self.error = error

    def placement(self) -> list[Placement]:
        return [ON, OFF]

    def profile(self, _feed: Any, *, runs: int) -> EngineProfile:
        if self.error is not None:
            raise self.error
        rows = [OperatorTime(row.operator, row.kind, row.device, (time,) * runs, (0.0,) * runs)
                for row, time in ((ON, 1.0), (OFF, 3.0))]  # fmt: skip
        return EngineProfile((), tuple(rows), 0.0)


def test_forbid_names_the_operator_the_device_and_the_reason() -> None:
    with pytest.raises(UnsupportedOperatorError, match="1 of 2 operators do not run on npu") as e:
        enforce([ON, OFF], TARGET, "forbid")
    assert "erf_1 (Erf) on cpu: npu has no kernel for it" in str(e.value)


def test_warn_and_allow() -> None:
    with pytest.warns(FallbackWarning, match="erf_1"):
        enforce([ON, OFF], TARGET, "warn")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        enforce([ON, OFF], TARGET, "allow")
        enforce([ON, ON], TARGET, "forbid")


def test_a_long_list_is_cut() -> None:
    with pytest.raises(UnsupportedOperatorError, match="and 2 more"):
        enforce([OFF] * 7, TARGET, "forbid")


def test_unknown_policy() -> None:
    with pytest.raises(InputError, match="fallback policy"):
        check_policy("maybe")


def test_shares_of_the_time_add_up() -> None:
    placed = place(Timed(), FEED, 4)  # type: ignore[arg-type]
    assert [row.share for row in placed] == [0.25, 0.75]
    assert [row.reason for row in placed] == ["asked for", "npu has no kernel for it"]


def test_no_shares_where_nothing_was_timed() -> None:
    failing = Timed(EngineError("no profiler"))
    for placed in (place(Timed(), None, 0), place(failing, FEED, 4)):  # type: ignore[arg-type]
        assert [row.share for row in placed] == [None, None]
