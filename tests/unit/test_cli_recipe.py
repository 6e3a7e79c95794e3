"""Recipes on the command line: what is listed and shown, and how settings are read."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("accelerate", reason="the extra `recipes` is not installed")

from sdk import recipes
from sdk.cli import main
from sdk.recipes.base import Recipe
from sdk.recipes.mobilenet_kd import MobileNetKD

Capture = pytest.CaptureFixture[str]


def test_list_names_every_recipe(capfd: Capture) -> None:
    assert main(["recipe", "list", "--json"]) == 0
    found = json.loads(capfd.readouterr().out)["recipes"]
    assert [row["name"] for row in found] == list(recipes.names())
    assert all(row["what"] and "tiny" in row["presets"] for row in found)


def test_show_has_every_setting_with_its_preset_values_and_meaning(capfd: Capture) -> None:
    assert main(["recipe", "show", "mobilenet_kd", "--json"]) == 0
    found = json.loads(capfd.readouterr().out)
    settings = {row["name"]: row for row in found["settings"]}
    assert list(settings) == [field.name for field in fields(MobileNetKD)]
    for preset in MobileNetKD.PRESETS:
        made = MobileNetKD.preset(preset)
        assert settings["steps"]["presets"][preset] == made.steps
        assert settings["arms"]["presets"][preset] == list(made.arms)
    assert settings["width"]["help"] == "Multiplies all channel counts of the student."
    assert main(["recipe", "show", "mobilenet_kd"]) == 0
    assert "max_drop" in capfd.readouterr().out


class _StopError(Exception):
    """Ends a run before it trains, with the recipe and what it was asked to do."""


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What `run` was called with."""
    seen: dict[str, Any] = {}

    def run(self: Recipe, output: Path, **options: Any) -> None:
        seen.update(recipe=self, output=output, **options)
        raise _StopError

    monkeypatch.setattr(MobileNetKD, "run", run)
    return seen


def test_settings_are_read_by_their_type(asked: dict[str, Any]) -> None:
    with pytest.raises(_StopError):
        main(
            ["recipe", "run", "mobilenet_kd", "--preset", "full", "-o", "x.edge", "--no-resume",
             "--overwrite", "--data", "photos", "--set", "steps=7", "--set", "lr=1e-3",
             "--set", "flip=no", "--set", "mean=0.5,0.4, 0.3", "--set", "engines=torch",
             "--set", "arms=ssld,all labels", "--set", "student_weights=a=b"]
        )  # fmt: skip
    assert asked["recipe"] == MobileNetKD.preset(
        "full", data="photos", steps=7, lr=1e-3, flip=False, mean=(0.5, 0.4, 0.3),
        engines=("torch",), arms=("ssld", "all labels"), student_weights="a=b",
    )  # fmt: skip
    assert asked["output"] == Path("x.edge")
    assert (asked["resume"], asked["overwrite"]) == (False, True)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["mobilenet_k"], "did you mean 'mobilenet_kd'?"),
        (["mobilenet_kd", "--preset", "tin"], "did you mean 'tiny'?"),
        (["mobilenet_kd", "--set", "step=3"], "did you mean 'steps'?"),
        (["mobilenet_kd", "--set", "steps"], "lacks '='"),
        (["mobilenet_kd", "--set", "steps=many"], "expected: int"),
        (["mobilenet_kd", "--set", "flip=perhaps"], "expected: bool"),
        (["mobilenet_kd", "--set", "student=resnet"], "mobilenet_v3_small"),
    ],
)
def test_a_wrong_setting_says_what_is_near(
    arguments: list[str], words: str, asked: dict[str, Any], capfd: Capture
) -> None:
    assert main(["recipe", "run", *arguments, "-o", "x.edge"]) == 2
    captured = capfd.readouterr()
    assert words in captured.err
    assert "Traceback" not in captured.err
    assert not asked
