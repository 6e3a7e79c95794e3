"""A search that takes up what an earlier one built: interrupted, damaged, with other data."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from searches import FEEDS, MODEL, Tune, closeness, flip, search
from torch import Tensor, nn

import sdk
from sdk.search.cache import CacheWarning
from sdk.search.result import Search


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
