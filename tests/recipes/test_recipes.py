"""Every recipe: presets, settings, and a short run from teacher to artifact."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

import sdk
from sdk import recipes

SHORT = {
    "adapt_steps": 3,
    "steps": 3,
    "finetune_steps": 2,
    "width": 0.25,
    "calibration": 16,
    "labelled": 20,
    "max_drop": 1.0,
    "engines": ("torch",),
    "precision": "fp32",
}


@pytest.mark.parametrize("name", recipes.names())
def test_presets_are_settings_of_the_recipe(name: str) -> None:
    kind = recipes.recipe_class(name)
    assert set(kind.PRESETS) >= {"tiny", "full"}
    assert kind.CLAIM
    for preset in kind.PRESETS:
        assert kind.preset(preset).digest() == kind.preset(preset).digest()


def test_near_names_are_told() -> None:
    with pytest.raises(sdk.InputError, match="did you mean 'mobilenet_kd'"):
        sdk.recipe("mobilenet_dk")
    with pytest.raises(sdk.InputError, match="did you mean 'steps'"):
        sdk.recipe("mobilenet_kd", step=3)
    with pytest.raises(sdk.InputError, match="did you mean 'tiny'"):
        sdk.recipe("mobilenet_kd", preset="tin")
    with pytest.raises(sdk.InputError, match="divergence='jsd'"):
        sdk.recipe("mobilenet_kd", divergence="jsd")


@pytest.fixture(scope="module")
def short_run(tmp_path_factory: pytest.TempPathFactory):
    output = tmp_path_factory.mktemp("recipe") / "student.edge"
    return sdk.recipe("mobilenet_kd", **SHORT).run(output)


def test_a_run_ends_in_an_artifact_that_predicts_labels(short_run) -> None:
    with sdk.load(short_run.artifact.path) as model:
        picture = np.full((20, 30), 128, np.uint8)
        labels = model.predict(picture)
        assert len(labels) == 5
        assert {label.name for label in labels} <= set("0123456789")
        assert sum(label.probability for label in labels) <= 1 + 1e-6


def test_the_exported_student_has_no_parameter_of_the_teacher(short_run) -> None:
    from safetensors.numpy import load_file

    stored = load_file(short_run.artifact.path / "weights.safetensors")
    assert set(stored) <= set(short_run.model.state_dict())


def test_the_report_and_the_card_say_what_was_measured(short_run) -> None:
    report = json.loads((short_run.folder / "report.json").read_text())
    assert report["settings"]["steps"] == SHORT["steps"]
    assert set(report["students"]) == {"ssld", "few labels"}
    card = (short_run.folder / "MODEL_CARD.md").read_text()
    assert f"{report['students']['ssld']['mean']:.2%}" in card
    assert "edge recipe run mobilenet_kd --preset tiny" in card


def test_a_second_run_takes_up_the_first_one_and_other_settings_do_not(
    short_run, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sdk.recipes.training import loop

    def refuse(*_: object) -> None:
        raise AssertionError("a finished stage was trained again")

    output = short_run.artifact.path
    with pytest.raises(sdk.InputError, match="exists already"):
        sdk.recipe("mobilenet_kd", **SHORT).run(output)
    with pytest.raises(sdk.InputError, match="made with other settings"):
        sdk.recipe("mobilenet_kd", **SHORT, seed=5).run(output, overwrite=True)
    monkeypatch.setattr(loop._Stage, "run", refuse)
    again = sdk.recipe("mobilenet_kd", **SHORT).run(output, overwrite=True)
    for name, tensor in short_run.model.state_dict().items():
        assert torch.equal(tensor, again.model.state_dict()[name])


def test_a_refused_precision_leaves_the_engine_with_fp32_and_the_reason(
    tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compile_really = sdk.compile

    def refuse_int8(model, *, target, **options):
        if target.precision == "int8":
            raise sdk.ParityError("planted: too far from the reference")
        return compile_really(model, target=target, **options)

    monkeypatch.setattr(sdk, "compile", refuse_int8)
    settings = {**SHORT, "precision": "int8", "arms": ("ssld",)}
    student = sdk.recipe("mobilenet_kd", **settings).run(tmp_path / "student.edge")
    assert list(student.artifacts) == ["torch:cpu:fp32"]
    assert "planted" in student.report["refused"]["torch:cpu:int8"]
    card = (student.folder / "MODEL_CARD.md").read_text()
    assert "`torch:cpu:int8` was refused" in card
    assert "planted" in card
