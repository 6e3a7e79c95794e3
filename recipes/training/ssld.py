"""The stages of one run of SSLD: what the recipe `mobilenet_kd` does, which says where it is from.

Each stage and each figure lies in the run's folder once it is there.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sdk.errors import InputError
from sdk.processor import Classification, ImageProcessor, Processor
from sdk.progress import Report
from sdk.recipes.data import images, pool
from sdk.recipes.data.images import ImageSet
from sdk.recipes.models.cifar_resnet import CifarResNet
from sdk.recipes.objectives.divergence import DIVERGENCES, cross_entropy
from sdk.recipes.training.evaluate import accuracy, logits
from sdk.recipes.training.export import Exported, export
from sdk.recipes.training.loop import Objective, Pairs, Schedule, augment, train
from sdk.recipes.workspace import Workspace
from sdk.signature import Array

if TYPE_CHECKING:
    from sdk.recipes.mobilenet_kd import MobileNetKD

TEACHERS = {f"resnet{depth}": depth for depth in (8, 14, 20, 32, 44, 56, 110)}


@dataclass
class Distillation:
    """One run under way: the images, and what the stages made of them."""

    recipe: MobileNetKD
    space: Workspace
    progress: Report
    results: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        recipe = self.recipe
        train_set, self.test = images.load(
            recipe.data, recipe.image_size, self.space.folder / "images", self.progress
        )
        order = images.stratified(train_set.labels, len(train_set), recipe.seed)
        if recipe.validation + recipe.labelled > len(train_set):
            raise InputError("There are fewer training images than validation + labelled.")
        self.validation = train_set.take(order[: recipe.validation])
        self.train = train_set.take(order[recipe.validation :])
        self.few = self.train.take(np.arange(recipe.labelled))
        self.classes = len(self.train.classes)
        size = (recipe.image_size, recipe.image_size)
        self.pre = ImageProcessor(size=size, mean=recipe.mean, std=recipe.std)
        mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (recipe.mean, recipe.std))
        self.normalise = partial(_normalise, mean=mean, std=std)

    def adapted_teacher(self) -> nn.Module:
        """The teacher, trained or adapted on all labels of the training images."""
        recipe = self.recipe
        model: nn.Module = CifarResNet(TEACHERS[recipe.teacher], self.classes)
        weights = self._teacher_weights()
        if weights is not None:
            load_weights(model, weights)
        before = self.space.once("teacher-before", lambda: self._test_accuracy(model))
        schedule = Schedule(
            steps=recipe.adapt_steps,
            batch=recipe.batch,
            lr=recipe.adapt_lr,
            weight_decay=1e-4,
            flip=recipe.flip,
            pad=max(1, recipe.image_size // 8),
        )
        data = Pairs(torch.from_numpy(self.train.pixels), torch.from_numpy(self.train.labels))
        model = self._train(model, data, cross_entropy, schedule, "teacher", recipe.seed)
        after = self.space.once("teacher-after", lambda: self._test_accuracy(model))
        start = weights.name if weights else "fresh weights"
        self.results["teacher"] = {"from": start, "before": before, "after": after}
        return model

    def students(self, teacher: nn.Module) -> dict[str, nn.Module]:
        """Each arm with each seed; returns those of the first seed."""
        first: dict[str, nn.Module] = {}
        self.results["students"] = {arm: [] for arm in self.recipe.arms}
        lessons = {arm: self._lesson(arm, teacher) for arm in self.recipe.arms}
        for seed in range(self.recipe.seed, self.recipe.seed + self.recipe.seeds):
            for arm in self.recipe.arms:
                name = f"seed{seed}/{arm.replace(' ', '-')}"
                model = self._student(name, seed, *lessons[arm])
                first.setdefault(arm, model)
                figures = self.space.once(f"{name}-test", partial(self._test_accuracy, model))
                self.results["students"][arm].append(figures["accuracy"])
        return first

    def compiled(self, student: nn.Module, output: Path, *, overwrite: bool) -> Exported:
        """Gated artifacts for every engine present."""
        recipe = self.recipe
        post = Classification(self.train.classes, top=min(5, self.classes))
        return export(
            student,
            output,
            artifacts=self.space.folder / "artifacts",
            processor=Processor("image", self.pre, "output", post),
            calibration=self._inputs(self.train.take(np.arange(recipe.calibration))),
            validation=(self._inputs(self.validation), self.validation.labels),
            test=(self._inputs(self.test), self.test.labels),
            engines=recipe.engines,
            precision=recipe.precision,
            max_drop=recipe.max_drop,
            overwrite=overwrite,
            progress=self.progress,
        )

    def figures(self, exported: Exported, seconds: float) -> dict[str, Any]:
        """Everything that the report and the model card say."""
        accuracies = self.results["students"]
        return {
            "teacher": self.results["teacher"],
            "students": {
                arm: {
                    "accuracy": values,
                    "mean": float(np.mean(values)),
                    "spread": float(max(values) - min(values)),
                }
                for arm, values in accuracies.items()
            },
            "images": {
                "train": len(self.train),
                "pool": self.results.get("pool", len(self.train)),
                "labelled": len(self.few),
                "validation": len(self.validation),
                "test": len(self.test),
            },
            "steps": {
                "teacher": self.recipe.adapt_steps,
                "student": self.recipe.steps + self.recipe.finetune_steps,
            },
            "builds": exported.rows,
            "refused": exported.refused,
            "seconds": round(seconds, 1),
        }

    def _lesson(self, arm: str, teacher: nn.Module) -> tuple[Pairs, Objective]:
        """What an arm learns from, and how; the same for each seed."""
        if arm == "ssld":
            return self._pool(teacher), self._distillation(teacher)
        labelled = self.few if arm == "few labels" else self.train
        pairs = Pairs(torch.from_numpy(labelled.pixels), torch.from_numpy(labelled.labels))
        return pairs, cross_entropy

    def _student(self, name: str, seed: int, data: Pairs, objective: Objective) -> nn.Module:
        torch.manual_seed(seed)
        model = self.recipe.new_student(self.classes)
        model = self._train(model, data, objective, self.recipe.schedule, name, seed)
        if not self.recipe.finetune_steps:
            return model
        return self._train(model, data, objective, self._finetune(), f"{name}-finetuned", seed + 1)

    def _finetune(self) -> Schedule:
        recipe = self.recipe
        return replace(recipe.schedule, steps=recipe.finetune_steps, lr=recipe.finetune_lr)

    def _distillation(self, teacher: nn.Module) -> Objective:
        """weight * divergence(student, teacher): the student's only loss."""
        divergence, weight = DIVERGENCES[self.recipe.divergence], self.recipe.weight
        if self.recipe.teacher_targets == "cached":
            return lambda student, scores, _inputs: weight * divergence(student, scores)
        teacher.train(self.recipe.teacher_bn == "batch")

        def online(student: Tensor, _scores: Tensor, inputs: Tensor) -> Tensor:
            with torch.no_grad():
                scores = teacher(inputs)
            return weight * divergence(student, scores)

        return online

    def _pool(self, teacher: nn.Module) -> Pairs:
        """Unlabelled images and the teacher's logits on them."""
        file = self.space.folder / "teacher-logits.safetensors"
        pixels = torch.from_numpy(self.train.pixels)
        if not file.is_file():
            self.progress("ask the teacher", 0, 1)
            part = file.with_suffix(".part")
            save_file({"logits": logits(teacher, pixels, self.normalise)}, part)
            part.rename(file)
        scores = load_file(file)["logits"]
        kept = pool.without_copies(self.train.pixels, self.test.pixels)
        if self.recipe.keep_per_class:
            sure = scores[kept].softmax(1).numpy()
            kept = kept[pool.surest(sure, self.recipe.keep_per_class)]
        self.results["pool"] = len(kept)
        return Pairs(pixels[kept], scores[kept])

    def _train(
        self,
        model: nn.Module,
        data: Pairs,
        objective: Objective,
        schedule: Schedule,
        name: str,
        seed: int,
    ) -> nn.Module:
        return train(
            model,
            data,
            objective,
            schedule,
            inputs=lambda pixels, seed: self.normalise(augment(pixels, schedule, seed)),
            name=name,
            folder=self.space.folder,
            seed=seed,
            progress=self.progress,
        )

    def _test_accuracy(self, model: nn.Module) -> dict[str, Any]:
        scores = logits(model, torch.from_numpy(self.test.pixels), self.normalise)
        return {"accuracy": accuracy(scores, self.test.labels)}

    def _inputs(self, chosen: ImageSet) -> Array:
        return self.pre(list(chosen.pixels))

    def _teacher_weights(self) -> Path | None:
        if self.recipe.teacher_weights:
            return Path(self.recipe.teacher_weights)
        root = images.root_of(self.recipe.data)
        beside = root / f"{self.recipe.teacher}.safetensors" if root else None
        return beside if beside is not None and beside.is_file() else None


def _normalise(pixels: Tensor, *, mean: Tensor, std: Tensor) -> Tensor:
    """uint8 N x H x W x 3 to float32 N x 3 x H x W in channels-last memory."""
    scaled = pixels.permute(0, 3, 1, 2).float() / 255
    return (scaled - mean.to(pixels.device)) / std.to(pixels.device)


def load_weights(model: nn.Module, file: Path) -> None:
    """Take weights from a safetensors file; InputError where they are not those of the model."""
    if not file.is_file():
        raise InputError(f"There are no weights at {file}.", expected="a safetensors file")
    try:
        model.load_state_dict(load_file(file))
    except (SafetensorError, RuntimeError) as error:
        raise InputError(
            f"The weights in {file.name} are not those of the model.",
            expected=type(model).__name__,
            got=str(error)[:500],
        ) from error
