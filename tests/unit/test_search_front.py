"""The choice among what passed, the Pareto front, bisection, and the reasons."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import sdk
from sdk.manifest import Candidate, Fidelity
from sdk.mixing import least_count, least_float
from sdk.search.front import Budget, choose, loss, pareto, proven_faster
from sdk.search.layers import slower_than_float
from sdk.search.verdicts import Verdicts
from sdk.timing import Latency


def built(precision: str, microseconds: float | None, size: int, *layers: str) -> Any:
    """Stands for a build: what the choice reads of it."""
    latency = None if microseconds is None else Latency.of([microseconds] * 5)
    return SimpleNamespace(
        target=sdk.Target("openvino", precision=precision),
        latency=latency,
        walls=[] if microseconds is None else [microseconds] * 20,
        bytes=size,
        checked_on="engine" if latency else "evaluator",
        facts=SimpleNamespace(float_layers=layers),
    )


FP32, FP16 = built("fp32", 100, 4000), built("fp16", 90, 2000)
INT8, INT4 = built("int8", 50, 1100), built("int4", 120, 600)
ALL = [FP32, FP16, INT8, INT4]


@pytest.mark.parametrize(
    ("budget", "kept"),
    [
        ({}, INT8),
        ({"bytes": 1000}, INT4),
        ({"bytes": 1100}, INT8),
        ({"latency_us": 1000}, INT8),  # int4 is smaller, and slower than fp32
        ({"latency_us": 95, "bytes": 2500}, INT8),
    ],
)
def test_the_fastest_or_the_smallest_within_the_budget(budget: Any, kept: Any) -> None:
    assert choose(ALL, FP32, Budget(**budget)) is kept


def test_the_smallest_that_is_not_slower_than_fp32() -> None:
    small = built("w8", 99, 900)
    assert choose([*ALL, small], FP32, Budget(latency_us=200)) is small
    assert choose([*ALL, small], FP32, Budget(latency_us=98)) is INT8


def noisy(center: float, seed: int, precision: str = "int8", *layers: str) -> Any:
    """A build timed 100 times, with an interquartile range of about a third."""
    made = built(precision, center, 1000, *layers)
    made.walls = list(center * np.random.default_rng(seed).lognormal(0, 0.25, 100))
    made.latency = Latency.of(made.walls)
    return made


def test_noise_does_not_decide_for_a_mixture() -> None:
    """Of equally fast builds the single precision stays, whatever the medians happen to be."""
    kept = [
        choose([noisy(50, seed), noisy(50, seed + 500, "int8", "conv")], None, Budget())
        for seed in range(100)
    ]
    assert sum(bool(build.facts.float_layers) for build in kept) <= 10


def test_a_mixture_that_is_faster_is_kept() -> None:
    single, mixed = noisy(50, 1), noisy(40, 2, "int8", "conv")
    assert proven_faster(mixed, single)
    assert choose([FP32, single, mixed], FP32, Budget()) is mixed
    assert not proven_faster(single, mixed)


def test_weight_only_has_to_prove_itself() -> None:
    single, other = noisy(50, 3, "fp32"), noisy(30, 4, "w8")
    assert choose([single, other], single, Budget()) is other


def test_the_kept_one_has_the_least_median_of_the_single_ones() -> None:
    for seed in range(50):
        singles = [noisy(50, 10 * seed + i, p) for i, p in enumerate(("fp32", "fp16", "int8"))]
        mixed = noisy(48, 10 * seed + 9, "int8", "conv")
        kept = choose([*singles, mixed], singles[0], Budget())
        assert kept.latency.p50 <= min(build.latency.p50 for build in singles)


def test_the_reason_of_one_that_is_not_reliably_faster() -> None:
    single, mixed = built("int8", 50, 1000), built("int8", 49, 1100, "conv")
    mixed.walls = single.walls
    verdicts = Verdicts([single, mixed], None, single, Budget(), {})
    assert verdicts.of(mixed) == "not reliably faster than int8: 49 us against 50 us (median)"


def test_untimed_builds_are_chosen_by_size() -> None:
    builds = [built("fp16", None, 2000), built("int4", None, 600)]
    assert choose(builds, None, Budget()) is builds[1]


def test_budgets_that_nothing_meets_name_the_nearest() -> None:
    with pytest.raises(sdk.BudgetError) as caught:
        choose(ALL, FP32, Budget(latency_us=40, bytes=1050))
    text = str(caught.value)
    assert "at most 40 us" in text
    assert "at most 1050 bytes" in text
    assert text.index("int8") < text.index("fp16") < text.index("int4")
    assert "fp32" not in text
    assert "50 us against 40 us allowed" in text


def candidate(microseconds: float | None, size: int, drop: float | None) -> Candidate:
    fidelity = None if drop is None else Fidelity((), "top1", 0.9, 0.9 - drop, 0.1)
    precision = "fp32" if drop is None else "int8"
    latency = None if microseconds is None else Latency.of([microseconds] * 5)
    return Candidate(f"openvino:cpu:{precision}", False, "", size, (), fidelity, latency)


def test_the_front_is_what_nothing_beats() -> None:
    fp32, int8 = candidate(100, 4000, None), candidate(50, 1100, 0.02)
    mixed, worse = candidate(60, 1500, 0.001), candidate(70, 1500, 0.002)
    failed = candidate(None, 10, 0.5)
    assert pareto([fp32, failed, int8, mixed, worse]) == (int8, mixed, fp32)


def test_loss() -> None:
    assert loss(candidate(1, 1, None)) == 0.0
    assert loss(candidate(1, 1, 0.02)) == pytest.approx(0.02)
    assert loss(candidate(1, 1, -0.01)) < 0


@pytest.mark.parametrize("most", [1, 2, 7, 64])
def test_the_least_count_is_found_in_few_steps(most: int) -> None:
    for least in range(1, most + 1):
        asked: set[int] = set()

        def holds(k: int, least: int = least, asked: set[int] = asked) -> bool:
            asked.add(k)
            return k >= least

        assert least_count(most, holds) == least
        assert max(asked) <= most
        assert len(asked) <= 2 * least.bit_length()


@pytest.mark.parametrize("most", [0, 1, 2, 7, 64])
def test_no_count_holds(most: int) -> None:
    asked: set[int] = set()
    assert least_count(most, lambda k: bool(asked.add(k))) is None
    assert asked <= set(range(1, most + 1))
    assert (most in asked) == (most > 0)


class Network:
    """A network that passes only with all of `needed` in float; counts the builds."""

    def __init__(self, *needed: str) -> None:
        self.needed, self.builds = set(needed), 0

    def attempt(self, layers: Sequence[str]) -> Any:
        self.builds += 1
        return tuple(layers) if self.needed <= set(layers) else None


LAYERS = [f"layer{index}" for index in range(40)]


def test_the_fewest_layers_go_to_float() -> None:
    network = Network(*LAYERS[:7])
    assert set(least_float(LAYERS, network.attempt) or ()) == set(LAYERS[:7])
    assert network.builds <= 6 + 4


def test_layers_that_were_ranked_wrongly_are_given_back() -> None:
    network = Network("layer1", "layer4")
    assert set(least_float(LAYERS, network.attempt) or ()) == {"layer1", "layer4"}


def test_more_than_half_in_float_is_no_mixture() -> None:
    network = Network(LAYERS[-1])
    assert least_float(LAYERS, network.attempt) is None
    assert network.builds == 6
    assert least_float(["only"], network.attempt) is None


def test_layers_that_are_slower_quantized() -> None:
    in_float = {"a": 100.0, "b": 10.0, "c": 50.0, "d": 0.1}
    quantized = {"a": 40.0, "b": 30.0, "c": 90.0, "d": 0.2, "e": 5.0}
    assert slower_than_float(list(quantized), in_float, quantized) == ["c", "b"]


def test_the_reason_names_the_layers_where_int8_loses() -> None:
    slow = built("int8", 150, 1100)
    times = {"fp32": {"conv": 20.0, "head": 10.0}, "int8": {"conv": 70.0, "head": 5.0}}
    verdicts = Verdicts([FP32, slow], FP32, FP32, Budget(), times)
    text = verdicts.of(slow)
    assert "int8 is slower than fp32: 150 us against 100 us" in text
    assert "slower in conv 70 against 20 us" in text
    assert "head" not in text


def test_reasons_under_a_latency_budget() -> None:
    verdicts = Verdicts(ALL, FP32, INT8, Budget(latency_us=110, bytes=3000), {})
    assert verdicts.of(FP32) == "over the budget: 4000 bytes against 3000 allowed"
    assert verdicts.of(INT4) == "over the budget: 120 us against 110 us allowed"
    assert "fp16 is slower than int8" in verdicts.of(FP16)
    assert verdicts.of(INT8).startswith("the smallest within the budgets of 4")
    fast = built("bf16", 40, 2000)
    assert "larger than int8: 2000 bytes against 1100" in Verdicts(
        [*ALL, fast], FP32, INT8, Budget(latency_us=110), {}
    ).of(fast)
