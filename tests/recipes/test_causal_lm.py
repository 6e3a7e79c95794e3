"""The recipe for language models: from a folder of text to an artifact, drafts and figures."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import tokenizers
import torch
from safetensors.torch import load_file

import sdk
from sdk.recipes import causal_lm, shipped
from sdk.recipes.base import Student
from sdk.recipes.models.huggingface import load_folder
from sdk.recipes.training import loop
from sdk.recipes.workspace import Workspace

SHORT = {
    "engines": ("onnxruntime",),
    "vocabulary": 320,
    "context": 96,
    "width": 32,
    "layers": 2,
    "hidden": 48,
    "shallow_layers": 1,
    "shallow_steps": 3,
    "steps": 4,
    "draft_steps": 4,
    "distil_steps": 4,
    "checkpoint_every": 3,
    "test_rows": 4,
    "prompts": 2,
    "hold_out_every": 4,
}
STAGES = ("draft", "target-shallow", "target", "draft-distilled")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some modules of code, each a group of its own."""
    folder = tmp_path_factory.mktemp("texts")
    for number in range(12):
        lines = [
            f"def measure_{number}_{i}(left, right):\n    return left * {i} + right\n\n"
            for i in range(30)
        ]
        (folder / f"module{number}.py").write_text("".join(lines))
    return folder


@pytest.fixture(scope="module")
def short_run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Student:
    output = tmp_path_factory.mktemp("recipe") / "code.edge"
    return sdk.recipe("causal_lm", data=str(data), **SHORT).run(output)


def test_a_run_ends_in_an_artifact_that_generates(short_run: Student) -> None:
    saved = load_folder(short_run.folder / "target_hf")
    with sdk.load(short_run.artifact.path, threads=1) as model:
        result = model.generate("def measure", max_new_tokens=12, eos=())
        ids = list(model.language.tokenizer.encode("def measure"))
    for token in result.tokens:
        with torch.no_grad():
            logits = saved.model(torch.tensor([ids]))[0, -1]
        assert logits[token] > logits.max() - 1e-4
        ids.append(token)


def test_the_report_and_the_card_say_what_was_measured(short_run: Student) -> None:
    report = json.loads((short_run.folder / "report.json").read_text())
    assert list(report["models"]) == list(STAGES)
    card = (short_run.folder / "MODEL_CARD.md").read_text()
    for stage in STAGES:
        assert f"{report['models'][stage]['per_byte']:.3f}" in card
    assert report["models"]["target"]["steps"] == 4
    held = report["corpus"]["test"]["groups"]
    assert not set(held) & set(report["corpus"]["train"]["groups"])
    assert all(name in card for name in held)
    assert [row["draft"] for row in report["speculation"][:4]] == [
        "none", "prompt lookup", "draft, from texts alone", "draft, distilled"
    ]  # fmt: skip
    assert all(row["same"] for row in report["speculation"])
    assert "edge recipe run causal_lm --preset tiny" in card


def test_training_rows_hold_no_held_out_text(short_run: Student, data: Path) -> None:
    held = json.loads((short_run.folder / "corpus.json").read_text())["test"]["groups"]
    tokenizer = load_folder(short_run.folder / "target_hf").tokenizer
    rows = np.load(short_run.folder / "train.npy")
    decode = tokenizers.Tokenizer.from_str(tokenizer).decode
    learnt = "".join(decode(row[1:].tolist()) for row in rows)
    for name in sorted(path.name for path in data.iterdir()):
        number = name.removeprefix("module").removesuffix(".py")
        assert (f"measure_{number}_" in learnt) == (name not in held)


def test_a_second_run_trains_nothing(
    short_run: Student, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a finished stage was trained again")

    monkeypatch.setattr(loop._Stage, "run", refuse)
    recipe = sdk.recipe("causal_lm", data=str(data), **SHORT)
    output = short_run.artifact.path
    space = Workspace.open(output, recipe, resume=True)
    model = causal_lm._Run(recipe, space, lambda *_: None).models()
    for name, weight in short_run.model.state_dict().items():
        assert torch.equal(weight, model.state_dict()[name])
    other = sdk.recipe("causal_lm", data=str(data), **SHORT, seed=4)
    with pytest.raises(sdk.InputError, match="made with other settings"):
        other.run(output, overwrite=True)


def test_what_cannot_be_done_is_told_before_the_training(tmp_path: Path) -> None:
    output = tmp_path / "m.edge"
    with pytest.raises(sdk.InputError, match="No engine here runs language models"):
        sdk.recipe("causal_lm", engines=("torch",)).run(output)
    with pytest.raises(sdk.InputError, match="no text to learn from"):
        sdk.recipe("causal_lm", data=str(tmp_path), engines=("onnxruntime",)).run(output)
    (tmp_path / "one.py").write_text("x = 1\n" * 3000)
    with pytest.raises(sdk.InputError, match="one group"):
        sdk.recipe("causal_lm", data=str(tmp_path), engines=("onnxruntime",)).run(output)


@pytest.mark.slow
def test_the_tiny_preset_learns_and_distillation_pays(tmp_path: Path) -> None:
    student = sdk.recipe("causal_lm", engines=("onnxruntime",)).run(tmp_path / "code.edge")
    found = student.report["models"]
    assert found["target"]["per_byte"] < 3.0
    assert found["target"]["per_byte"] < found["draft"]["per_byte"]
    rows = {(row["prompts"], row["draft"]): row for row in student.report["speculation"]}
    for kind in ("completions", "edits"):
        alone, taught = (
            rows[kind, f"draft, {how}"]["acceptance"] for how in ("from texts alone", "distilled")
        )
        assert taught > alone + 0.03
    assert all(row["same"] for row in rows.values())


def test_a_finished_run_can_be_kept_in_half_precision(short_run: Student, tmp_path: Path) -> None:
    kept, again = tmp_path / "kept", tmp_path / "again"
    shipped.take_in(short_run.folder, kept)
    assert (kept / "MODEL_CARD.md").is_file()
    for name in ("target", "draft", "draft-distilled"):
        weights = load_file(short_run.folder / f"{name}.safetensors")
        half = load_file(kept / f"{name}.safetensors")
        assert all(torch.equal(half[key], weight.half()) for key, weight in weights.items())
    shutil.copytree(kept, again, ignore=shutil.ignore_patterns("target.safetensors"))
    with pytest.raises(sdk.InputError, match=r"no target\.safetensors"):
        shipped.take_in(again, tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()


def test_the_models_of_the_package_need_no_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop._Stage, "run", lambda *_: pytest.fail("trained"))
    recipe = sdk.recipe("causal_lm", preset="shipped")
    space = Workspace.open(tmp_path / "code.edge", recipe, resume=True)
    shipped.take_out(space.folder)
    run = causal_lm._Run(recipe, space, lambda *_: None)
    model = run.models()
    assert run.results["target"]["per_byte"] < run.results["draft"]["per_byte"]
    ids = run.tokenizer.encode("import os\nimport sys\n\n\ndef main(argv=None):\n    return").ids
    with torch.no_grad():
        likely = model(torch.tensor([ids]))[0].log_softmax(-1)
    nats = -likely[:-1].gather(1, torch.tensor(ids[1:])[:, None]).mean()
    assert nats < 5.0  # a model without training gives log(2048) = 7.6
    for name in ("target_hf", "draft_hf"):
        assert load_folder(space.folder / name).model.size.vocabulary == 2048
    with pytest.raises(sdk.InputError, match="no weights 'own'"):
        sdk.recipe("causal_lm", weights="own").run(tmp_path / "other.edge")
