"""The training loop: steps that depend on seed and number alone, and stages that resume."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from sdk.recipes.objectives.divergence import cross_entropy
from sdk.recipes.training import loop
from sdk.recipes.training.loop import Pairs, Schedule, StepSampler, augment, train

SCHEDULE = Schedule(steps=12, batch=8, lr=0.05, checkpoint_every=4, ema=0.5)


class HaltError(Exception):
    """Raised by a progress hook, as a user's Ctrl-C would be."""


def normalise(pixels: Tensor) -> Tensor:
    return pixels.permute(0, 3, 1, 2).float() / 255


def small_model() -> nn.Module:
    torch.manual_seed(7)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, 2), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(36, 3)
    )


@pytest.fixture
def pairs() -> Pairs:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (30, 8, 8, 3), generator=generator, dtype=torch.uint8)
    return Pairs(pixels, torch.arange(30) % 3)


def fit(folder: Path, pairs: Pairs, stop_at: int = 0, seed: int = 1) -> dict[str, Tensor]:
    def progress(_what: str, done: int, _total: int) -> None:
        if stop_at and done == stop_at:
            raise HaltError

    model = train(
        small_model(),
        pairs,
        cross_entropy,
        SCHEDULE,
        inputs=lambda pixels, seed: normalise(augment(pixels, SCHEDULE, seed)),
        name="stage",
        folder=folder,
        seed=seed,
        progress=progress,
    )
    assert not model.training
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def test_a_stage_that_was_cut_off_ends_where_the_whole_one_does(
    tmp_path: Path, pairs: Pairs
) -> None:
    whole = fit(tmp_path / "whole", pairs)
    with pytest.raises(HaltError):
        fit(tmp_path / "cut", pairs, stop_at=7)
    assert (tmp_path / "cut" / "stage.checkpoint" / "step").read_text() == "4"
    resumed = fit(tmp_path / "cut", pairs)
    for name, tensor in whole.items():
        torch.testing.assert_close(resumed[name], tensor, msg=name)
    assert not (tmp_path / "cut" / "stage.checkpoint").exists()


def test_a_finished_stage_is_not_run_again(tmp_path: Path, pairs: Pairs) -> None:
    first = fit(tmp_path, pairs)
    again = fit(tmp_path, pairs, stop_at=1)  # would raise if it trained
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_seeds_make_a_difference_and_repeat(tmp_path: Path, pairs: Pairs) -> None:
    one, same, other = (
        fit(tmp_path / str(i), pairs, seed=seed)["0.weight"] for i, seed in enumerate((1, 1, 2))
    )
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_training_learns(tmp_path: Path, pairs: Pairs) -> None:
    """Labels that are written into the pictures are read from them."""
    pixels = torch.zeros(30, 8, 8, 3, dtype=torch.uint8)
    pixels[torch.arange(30), :, :, pairs.targets] = 200
    schedule = replace(SCHEDULE, steps=60)
    model = train(
        small_model(),
        Pairs(pixels, pairs.targets),
        cross_entropy,
        schedule,
        inputs=lambda pixels, seed: normalise(augment(pixels, schedule, seed)),
        name="easy",
        folder=tmp_path,
        seed=0,
        progress=lambda *_: None,
    )
    assert (model(normalise(pixels)).argmax(1) == pairs.targets).float().mean() > 0.95


def test_batches_are_permutations_and_do_not_depend_on_the_start() -> None:
    whole = list(StepSampler(10, 4, seed=5, start=0, stop=10))
    flat = [index for batch in whole for index in batch]
    epochs = [flat[i : i + 10] for i in range(0, 40, 10)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert epochs[0] != epochs[1]
    assert list(StepSampler(10, 4, seed=5, start=6, stop=10)) == whole[6:]


def test_crops_are_windows_of_the_padded_picture_mirrored_or_not() -> None:
    pixels = torch.randint(1, 256, (20, 6, 6, 3), dtype=torch.uint8)
    cropped = augment(pixels, replace(SCHEDULE, pad=2, flip=True), seed=3)
    padded = nn.functional.pad(pixels, (0, 0, 2, 2, 2, 2))
    mirrored = 0
    for before, after in zip(padded, cropped, strict=True):
        windows = [before[i : i + 6, j : j + 6] for i in range(5) for j in range(5)]
        plain = any(torch.equal(after, window) for window in windows)
        flipped = any(torch.equal(after, window.flip(1)) for window in windows)
        assert plain or flipped
        mirrored += flipped
    assert 3 < mirrored < 17


def test_a_flat_schedule_falls_over_its_last_share_alone() -> None:
    schedule = replace(SCHEDULE, steps=100, warmup=0.1, shape="flat", decay=0.5)
    factors = [schedule.factor(step, 0.0) for step in range(100)]
    assert factors[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert set(factors[10:55]) == {1.0}
    assert factors[55:] == pytest.approx([(100 - step) / 45 for step in range(55, 100)])


def test_a_time_limit_moves_the_learning_rate_and_ends_the_stage() -> None:
    schedule = replace(SCHEDULE, steps=1000, warmup=0.001, minutes=2.0, shape="flat", decay=0.5)
    assert schedule.factor(50, 30.0) == 1.0
    assert schedule.factor(50, 90.0) == pytest.approx(0.5)
    assert schedule.factor(50, 119.9) == pytest.approx(0.0, abs=2e-3)
    assert [schedule.over(seconds) for seconds in (119.9, 120.0)] == [False, True]
    assert not replace(schedule, minutes=0.0).over(1e9)


def test_a_stage_ends_at_its_time_and_counts_that_of_earlier_runs(
    tmp_path: Path, pairs: Pairs, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = {"now": 0.0}
    monkeypatch.setattr(loop.time, "monotonic", lambda: clock["now"])
    schedule = replace(SCHEDULE, steps=1000, minutes=1.0, checkpoint_every=2, optimizer="adamw")

    def fit_timed(stop_at: int) -> None:
        def progress(what: str, done: int, _total: int) -> None:
            clock["now"] += 7.0
            if what.startswith("stage: loss") and done == stop_at:
                raise HaltError

        train(
            small_model(),
            pairs,
            cross_entropy,
            schedule,
            inputs=lambda pixels, seed: normalise(augment(pixels, schedule, seed)),
            evaluate=lambda model: {"weights": model[0].weight.sum().item()},
            name="stage",
            folder=tmp_path,
            seed=0,
            progress=progress,
        )

    with pytest.raises(HaltError):
        fit_timed(stop_at=5)
    clock["now"] = 1000.0  # time that passes between two runs is no time of training
    fit_timed(stop_at=0)
    lines = [json.loads(line) for line in (tmp_path / "stage.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4, 6, 8, 9]
    assert [line["seconds"] for line in lines] == [14.0, 28.0, 42.0, 56.0, 63.0]
    assert all("weights" in line for line in lines)
