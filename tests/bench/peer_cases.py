"""The models that the peers and the SDK compile, with the data that calibrates and checks them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import mobilenet_v2
import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn

from sdk import recipes
from sdk.processor import ImageProcessor
from sdk.recipes.data import images
from sdk.signature import Array

CALIBRATION = 256


@dataclass(frozen=True)
class Case:
    """One model. All compilers get the same calibration inputs, one by one or in batches."""

    name: str
    model: Any
    """What the SDK compiles."""
    onnx: Path
    """What the peers quantize: the file that was published, or torch.onnx.export's."""
    calibration: Array
    check: Array
    labels: Array | None
    """Classes of the check inputs; without, a build is right where it agrees with fp32."""
    input: str = "image"

    @property
    def metric(self) -> str:
        """What `right` counts."""
        return "agreement with fp32" if self.labels is None else "top-1"


def mobilenet(data: Path, _folder: Path) -> Case:
    """The public MobileNetV2 and ImageNet pictures: every other ten calibrate, the rest checks."""
    pictures = mobilenet_v2.load_images(data)
    blocks = [pictures[start : start + 10] for start in range(0, len(pictures), 10)]
    file = data / mobilenet_v2.MODEL
    calibration, check = (np.concatenate(blocks[odd::2]) for odd in (0, 1))
    return Case("mobilenet_v2 224 x 224", file, file, calibration, check, None)


def student(run: Path | None, data: Path, folder: Path) -> Case:
    """The student of a finished run of `mobilenet_kd`; without one, of a `tiny` run made here."""
    if run is None:
        recipes.get("mobilenet_kd", preset="tiny").run(folder / "student.edge")
        run = folder / "student.run"
    recipe = _recipe(run, data)
    train, test = images.load(recipe.data, recipe.image_size, folder / "images", _silent)
    size = (recipe.image_size, recipe.image_size)
    pre = ImageProcessor(size=size, mean=recipe.mean, std=recipe.std)
    order = images.stratified(train.labels, len(train), recipe.seed)[recipe.validation :]
    calibration = pre(list(train.pixels[order[:CALIBRATION]]))
    model = _load_student(recipe, run, len(train.classes))
    return Case(
        f"{recipe.student} {recipe.image_size} x {recipe.image_size}",
        model,
        _export(model, calibration, folder / "fp32.onnx"),
        calibration,
        pre(list(test.pixels)),
        test.labels,
    )


def cases(data: Path, run: Path | None) -> dict[str, Callable[[Path], Case]]:
    """Name -> what makes the case in a folder."""
    return {"mobilenet": partial(mobilenet, data), "student": partial(student, run, data)}


def _recipe(run: Path, data: Path) -> Any:
    """The settings of the run; its images are those of `data`, wherever they were then."""
    stored = json.loads((run / "settings.json").read_text())
    recipe = recipes.get("mobilenet_kd", preset="tiny")
    known = {name: stored[name] for name in ("student", "width", "stem_stride", "image_size",
             "mean", "std", "seed", "validation", "data")}  # fmt: skip
    if known["data"] != "digits":
        known["data"] = str(data / "cifar10")
    return replace(recipe, **{k: tuple(v) if isinstance(v, list) else v for k, v in known.items()})


def _load_student(recipe: Any, run: Path, classes: int) -> nn.Module:
    model: nn.Module = recipe.new_student(classes)
    model.load_state_dict(load_file(run / f"seed{recipe.seed}" / "ssld-finetuned.safetensors"))
    return model.eval()


def _export(model: nn.Module, inputs: Array, file: Path) -> Path:
    """torch.onnx.export as its documentation has it, with a free batch."""
    batch = torch.export.Dim("batch", min=1, max=64)
    example = (torch.from_numpy(inputs[:2]),)
    torch.onnx.export(
        model,
        example,
        file,
        dynamo=True,
        input_names=["image"],
        output_names=["logits"],
        dynamic_shapes=({0: batch},),
        external_data=False,
        verbose=False,
    )
    return file


def _silent(_stage: str, _done: int, _total: int) -> None:
    pass
