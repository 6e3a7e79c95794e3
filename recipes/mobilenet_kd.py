"""SSLD, simple semi-supervised label distillation, for MobileNetV3 (Cui et al., "Beyond
Self-Supervision: A Simple Yet Effective Network Distillation Alternative to Improve Backbones",
arXiv 2103.05959).

The student learns from the teacher's soft output alone, so that every image is training data,
labelled or not:

1. choose the pool (section 3.2): all training images without their labels, less near-copies of
   test images; optionally, per predicted class, only those of which the teacher is surest;
2. distil: minimise JS(student, teacher) over the pool;
3. fine-tune with the same label-free loss at a low learning rate (section 3.3).

Where this differs from the paper, by our reading or for want of its scale: the teacher is first
adapted to the images at hand on their labels; its outputs are taken once, from the plain images,
and kept (`teacher_targets="online"` asks it for each crop, as the paper does); the loss has a
weight, because near agreement JS has a quarter of the gradient of KL, which short schedules feel.
Baselines with the same student, steps and optimiser stand beside it: they learn from the labels of
the few images only, and of all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from torch import nn

from sdk.artifact import check_output
from sdk.errors import InputError
from sdk.progress import Report, terminal
from sdk.recipes.base import Recipe, Student
from sdk.recipes.card import write_card
from sdk.recipes.models.mobilenetv3 import mobilenet_v3_large, mobilenet_v3_small
from sdk.recipes.objectives.divergence import DIVERGENCES
from sdk.recipes.training.loop import Schedule
from sdk.recipes.training.ssld import TEACHERS, Distillation, load_weights
from sdk.recipes.workspace import Workspace

STUDENTS = {"mobilenet_v3_small": mobilenet_v3_small, "mobilenet_v3_large": mobilenet_v3_large}
ARMS = ("ssld", "few labels", "all labels")


@dataclass(frozen=True, kw_only=True)
class MobileNetKD(Recipe):
    """MobileNetV3 students by label-free Jensen-Shannon distillation (SSLD, arXiv 2103.05959)."""

    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "tiny": {},
        "full": {
            "data": "", "teacher": "resnet56", "stem_stride": 1, "flip": True,
            "labelled": 1000, "validation": 2000, "batch": 128, "lr": 0.2,
            "adapt_steps": 600, "adapt_lr": 0.02, "steps": 900, "finetune_steps": 100,
            "ema": 0.99, "seeds": 3, "max_drop": 0.005, "arms": ARMS,
        },
    }  # fmt: skip

    CLAIM: ClassVar[str] = (
        "The paper's abstract gives MobileNetV3-large 79.0 % top-1 on ImageNet after SSLD, from "
        "75.2 %; that is another data set, with four million more images and 360 epochs: the "
        "figures do not compare."
    )

    data: str = "digits"
    """`digits`, or a folder with train and test; empty: the folder that $EDGE_DATA names."""
    image_size: int = 32
    """Height and width of the images, in pixels."""
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)

    student: str = "mobilenet_v3_small"
    width: float = 1.0
    """Multiplies all channel counts of the student."""
    stem_stride: int = 2
    """Stride of the student's first convolution; 1 suits images of 32 pixels."""
    student_weights: str = ""
    """A safetensors checkpoint that the student starts from."""

    teacher: str = "resnet8"
    teacher_weights: str = ""
    """A safetensors checkpoint; empty: `<data>/<teacher>.safetensors`, else a fresh teacher."""
    adapt_steps: int = 200
    """Steps of the stage that adapts the teacher to the images, on all their labels."""
    adapt_lr: float = 0.2
    teacher_targets: str = "cached"
    """`cached`: the teacher sees each plain image once; `online`: each crop of each step."""
    teacher_bn: str = "eval"
    """Batch norms of an online teacher: `eval`, or `batch`, which the authors' code uses."""
    keep_per_class: int = 0
    """How many images per predicted class stay in the pool, the surest first; 0: all."""

    labelled: int = 100
    """How many images have labels for the student; the rest of the training images has none."""
    validation: int = 240
    """How many training images are set aside for the accuracy gate of quantization."""
    divergence: str = "js"
    weight: float = 4.0
    """Factor of the distillation loss."""
    steps: int = 160
    finetune_steps: int = 20
    batch: int = 64
    lr: float = 0.2
    finetune_lr: float = 0.01
    weight_decay: float = 4e-5
    ema: float = 0.95
    flip: bool = False
    """Mirror half of the training images."""
    seed: int = 0
    seeds: int = 1
    """How many students to train with consecutive seeds; the first one is compiled."""
    arms: tuple[str, ...] = ("ssld", "few labels")
    """What to train: `ssld` and baselines among `few labels` and `all labels`."""

    engines: tuple[str, ...] = ()
    """Engines to compile for; empty: all that are present."""
    precision: str = "int8"
    calibration: int = 256
    """How many images calibrate int8."""
    max_drop: float = 0.01
    """Top-1 accuracy that a lower precision may lose on the validation images."""

    def __post_init__(self) -> None:
        _one_of("student", self.student, STUDENTS)
        _one_of("teacher", self.teacher, TEACHERS)
        _one_of("divergence", self.divergence, DIVERGENCES)
        _one_of("teacher_targets", self.teacher_targets, ("cached", "online"))
        _one_of("teacher_bn", self.teacher_bn, ("eval", "batch"))
        for arm in self.arms:
            _one_of("arms", arm, ARMS)
        if "ssld" not in self.arms:
            raise InputError("The recipe's arms lack 'ssld', the student itself.", got=self.arms)

    def run(
        self,
        output: str | Path,
        *,
        resume: bool = True,
        overwrite: bool = False,
        progress: Report | None = None,
    ) -> Student:
        """Adapt the teacher, distil the student, train the baselines, compile and report."""
        output = Path(output)
        check_output(output, overwrite=overwrite)
        space = Workspace.open(output, self, resume=resume)
        with terminal(progress) as report, space.clock() as seconds:
            run = Distillation(self, space, report)
            teacher = run.adapted_teacher()
            models = run.students(teacher)
            exported = run.compiled(models["ssld"], output, overwrite=overwrite)
            figures = run.figures(exported, seconds())
            write_card(space.folder, self, figures, exported)
        return Student(models["ssld"], exported.best, exported.artifacts, figures, space.folder)

    @property
    def schedule(self) -> Schedule:
        """Of the distillation stage, and of the baselines."""
        return Schedule(
            steps=self.steps,
            batch=self.batch,
            lr=self.lr,
            weight_decay=self.weight_decay,
            ema=self.ema,
            flip=self.flip,
            pad=max(1, self.image_size // 8),
        )

    def new_student(self, classes: int) -> nn.Module:
        """A student with fresh weights, or those of `student_weights`."""
        model = STUDENTS[self.student](classes, width=self.width, stem_stride=self.stem_stride)
        if self.student_weights:
            load_weights(model, Path(self.student_weights))
        return model


RECIPE = MobileNetKD


def _one_of(setting: str, value: str, known: Any) -> None:
    if value not in known:
        raise InputError(
            f"The setting {setting}={value!r} is not known.", expected=f"one of {', '.join(known)}"
        )
