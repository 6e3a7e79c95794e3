"""Layers go back to float until the metric holds; a mixture that its engine gets wrong is none."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from types import SimpleNamespace
from typing import Any

import pytest

from sdk.errors import ParityError
from sdk.mixing import gated

LAYERS = [f"layer{i}" for i in range(8)]


class Network:
    """Stands for a builder: `needed` layers in float are within the budget."""

    def __init__(self, needed: int, diverging: tuple[int, ...] = ()) -> None:
        self.needed, self.diverging = needed, diverging
        self.settings = SimpleNamespace(keep_float=(), metric=len)
        self.calibration = ["batch"]
        self.closed = 0

    def measured(self, precision: str, baseline: Any, *, keep_float: tuple[str, ...]) -> Any:
        if len(keep_float) in self.diverging:
            raise ParityError("The engine computes something else.")
        return SimpleNamespace(layers=keep_float, session=SimpleNamespace(close=self._close))

    def mixing(self) -> AbstractContextManager[None]:
        return nullcontext()

    def _close(self) -> None:
        self.closed += 1

    def within_budget(self, built: Any) -> bool:
        return len(built.layers) >= self.needed

    def layer_costs(self, precision: str) -> list[tuple[str, float]]:
        return [(name, 1.0) for name in LAYERS]

    def gate_fidelity(self, built: Any) -> None:
        if not self.within_budget(built):
            raise ParityError("It loses too much.")


def test_a_diverging_mixture_does_not_end_the_search() -> None:
    network: Any = Network(needed=3, diverging=(2,))
    assert gated(network, "int8", None).layers == tuple(LAYERS[:3])
    assert network.closed == 1


def test_layers_go_to_float_where_the_engine_strays() -> None:
    network: Any = Network(needed=0, diverging=(0, 1))
    assert gated(network, "int8", None).layers == tuple(LAYERS[:2])


def test_where_all_mixtures_stray_it_is_an_error() -> None:
    network: Any = Network(needed=0, diverging=(0, 1, 2, 3, 4))
    with pytest.raises(ParityError, match="something else"):
        gated(network, "int8", None)
    network.settings.metric = None
    network.diverging = (0,)
    with pytest.raises(ParityError, match="something else"):
        gated(network, "int8", None)


def test_half_of_the_layers_is_the_most() -> None:
    network: Any = Network(needed=5)
    with pytest.raises(ParityError, match="too much"):
        gated(network, "int8", None)
