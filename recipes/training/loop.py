"""The one training loop, on `accelerate`: the same recipe runs on one CPU, a GPU or many machines.

What happens at step k depends on the seed and on k alone (which examples, which crops), so that an
interrupted stage that resumes from its checkpoint ends where the uninterrupted one would. The
exception is a stage with a time limit, whose learning rate follows the clock.
"""

from __future__ import annotations

import json
import logging
import math
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as nnf
from accelerate import Accelerator
from accelerate.utils import set_seed
from safetensors.torch import load_model, save_model
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn
from torch.utils.data import DataLoader, Dataset, Sampler

from sdk.extras import quiet
from sdk.progress import Report

Objective = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(the model's outputs, the targets of the batch, the model's inputs) -> loss"""
Inputs = Callable[[Tensor, int], Tensor]
"""(what the data give for a batch, the step's seed) -> the model's inputs"""
Evaluate = Callable[[nn.Module], dict[str, float]]
"""The figures of the averaged weights, taken at each checkpoint."""
STATISTICS_BATCHES = 40
log = logging.getLogger("sdk.recipes")


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Linear warm-up, decay to zero, averaged weights (EMA).

    lr: peak learning rate. warmup: share of the steps. ema: decay of the averaged weights per step.
    shape: `cosine`; or `flat`, which stays at the peak and falls in a line over the last share
        `decay` (warm-up, stable, decay: Hu et al., "MiniCPM", arXiv 2404.06395, section 4).
    minutes: the stage ends, its decay behind it, after so many minutes of training, or after
        `steps` where that is sooner; 0: no limit.
    optimizer: `sgd`, with Nesterov momentum, or `adamw`, with `betas`.
    pad: pixels of zero padding for random crops. flip: mirror half of the images.
    """

    steps: int
    batch: int
    lr: float
    warmup: float = 0.05
    momentum: float = 0.9
    weight_decay: float = 4e-5
    clip_norm: float = 5.0
    ema: float = 0.99
    pad: int = 4
    flip: bool = True
    checkpoint_every: int = 200
    optimizer: str = "sgd"
    betas: tuple[float, float] = (0.9, 0.99)
    shape: str = "cosine"
    decay: float = 0.3
    minutes: float = 0.0

    def factor(self, step: int, seconds: float) -> float:
        """Learning rate over its peak at `step`, after so many seconds of training."""
        warmup = max(1, round(self.warmup * self.steps))
        if step < warmup:
            return (step + 1) / warmup
        share = (step - warmup) / max(1, self.steps - warmup)
        if self.minutes:
            share = max(share, seconds / (60 * self.minutes))
        share = min(1.0, share)
        if self.shape == "flat":
            return min(1.0, (1 - share) / self.decay)
        return (1 + math.cos(math.pi * share)) / 2

    def over(self, seconds: float) -> bool:
        """Whether the time is up."""
        return bool(self.minutes) and seconds >= 60 * self.minutes


class Batches(Protocol):
    """What a stage draws from."""

    def __len__(self) -> int: ...

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        """A whole batch at once: inputs and targets."""
        ...


class Pairs(Dataset[tuple[Tensor, Tensor]]):
    """Pictures (uint8, N x H x W x 3) and one target for each: labels, or a teacher's logits."""

    def __init__(self, pixels: Tensor, targets: Tensor) -> None:
        self.pixels, self.targets = pixels, targets

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.pixels[index], self.targets[index]

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        """A whole batch at once."""
        rows = torch.tensor(indices)
        return self.pixels[rows], self.targets[rows]


class StepSampler(Sampler[list[int]]):
    """The indices of steps `start` to `stop`: each epoch has its own permutation."""

    drop_last = False

    def __init__(self, size: int, batch: int, seed: int, start: int, stop: int) -> None:
        self.size, self.batch_size, self.seed = size, batch, seed
        self.start, self.stop = start, stop

    def __len__(self) -> int:
        return self.stop - self.start

    def __iter__(self) -> Iterator[list[int]]:
        epoch, order = -1, torch.empty(0, dtype=torch.long)
        for step in range(self.start, self.stop):
            picked: list[int] = []
            for position in range(step * self.batch_size, (step + 1) * self.batch_size):
                if position // self.size != epoch:
                    epoch = position // self.size
                    generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
                    order = torch.randperm(self.size, generator=generator)
                picked.append(int(order[position % self.size]))
            yield picked


def train(
    model: nn.Module,
    data: Batches,
    objective: Objective,
    schedule: Schedule,
    *,
    name: str,
    folder: Path,
    seed: int,
    progress: Report,
    inputs: Inputs = lambda batch, _seed: batch,
    evaluate: Evaluate | None = None,
) -> nn.Module:
    """Train `model` and return it with its averaged weights, in eval mode.

    The finished weights are kept in `folder/name.safetensors` and taken from there the next time;
    a stage that was cut off resumes from `folder/name.checkpoint`. What happened is in
    `folder/name.jsonl`, a line for each checkpoint.
    """
    finished = folder / f"{name}.safetensors"
    if finished.is_file():
        load_model(model, finished)
        return model.eval()
    set_seed(seed)
    finished.parent.mkdir(parents=True, exist_ok=True)
    stage = _Stage(model, data, schedule, seed, folder / f"{name}.checkpoint", inputs, evaluate)
    averaged = stage.run(objective, name, progress)
    model.load_state_dict(averaged.module.state_dict())
    part = finished.with_suffix(".part")
    save_model(model, str(part))
    part.rename(finished)
    shutil.rmtree(folder / f"{name}.checkpoint", ignore_errors=True)
    return model.eval()


class _Stage:
    """Model, optimiser and schedule of one stage under way, with its checkpoints."""

    def __init__(
        self,
        model: nn.Module,
        data: Batches,
        schedule: Schedule,
        seed: int,
        folder: Path,
        inputs: Inputs,
        evaluate: Evaluate | None,
    ) -> None:
        self.schedule, self.data, self.seed, self.folder = schedule, data, seed, folder
        self.inputs, self.evaluate = inputs, evaluate
        self.accelerator = Accelerator()
        model = model.to(self.accelerator.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._before, self._started = 0.0, time.monotonic()
        optimizer = OPTIMIZERS[schedule.optimizer](model, schedule)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, self._factor)
        average = get_ema_multi_avg_fn(schedule.ema)  # type: ignore[no-untyped-call]
        self.averaged = AveragedModel(model, multi_avg_fn=average)
        self.model, self.optimizer, self.scheduler = self.accelerator.prepare(
            model, optimizer, scheduler
        )
        self.accelerator.register_for_checkpointing(self.averaged)

    @property
    def seconds(self) -> float:
        """Time in training, interruptions taken out."""
        return self._before + time.monotonic() - self._started

    def run(self, objective: Objective, name: str, progress: Report) -> AveragedModel:
        """All steps that are left."""
        start, total = self._resume(), self.schedule.steps
        self.model.train()
        done, loss = start, torch.tensor(math.nan)
        for step, (batch, targets) in enumerate(self._loader(start), start):
            if self.schedule.over(self.seconds):
                break
            inputs = self.inputs(batch, self._seed(step))
            loss = objective(self.model(inputs), targets, inputs)
            self._update(loss)
            done = step + 1
            progress(f"{name}: loss {loss.item():.3f}", done, total)
            if done % self.schedule.checkpoint_every == 0:
                self._report(name, done, loss.item())
                self._save(done)
        if done % self.schedule.checkpoint_every:
            self._report(name, done, loss.item())
        progress(f"{name}: batch norm statistics", total, total)
        update_bn(self._last_inputs(), self.averaged, self.accelerator.device)
        return self.averaged

    def _last_inputs(self) -> Iterator[Tensor]:
        """Batches on which the statistics of the averaged weights are taken (Izmailov et al., 2018,
        arXiv 1803.05407, section 3.2); those seen in training belong to other weights.
        """
        stop = self.schedule.steps
        for step, (batch, _) in enumerate(self._loader(max(0, stop - STATISTICS_BATCHES))):
            yield self.inputs(batch, self._seed(step))

    def _seed(self, step: int) -> int:
        return self.seed * 1_000_003 + step

    def _report(self, name: str, step: int, loss: float) -> None:
        """A line for the log, with the figures of the averaged weights."""
        log.info("%s: step %d of %d, loss %.4f", name, step, self.schedule.steps, loss)
        line = {"step": step, "seconds": round(self.seconds, 1), "loss": round(loss, 4)}
        if self.evaluate is not None:
            line |= self.evaluate(self.averaged.module)
        with self.folder.with_suffix(".jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")

    def _loader(self, start: int) -> DataLoader[tuple[Tensor, Tensor]]:
        sampler = StepSampler(
            len(self.data), self.schedule.batch, self.seed, start, self.schedule.steps
        )
        data: Any = self.data  # `Dataset` asks for single items, which a whole batch needs not
        loader: Any = DataLoader(data, batch_sampler=sampler, collate_fn=_as_is)
        return self.accelerator.prepare(loader)  # type: ignore[no-any-return]

    def _update(self, loss: Tensor) -> None:
        self.accelerator.backward(loss)
        self.accelerator.clip_grad_norm_(self.model.parameters(), self.schedule.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.scheduler.step()
        self.averaged.update_parameters(self.accelerator.unwrap_model(self.model))

    def _factor(self, step: int) -> float:
        return self.schedule.factor(step, self.seconds)

    def _save(self, step: int) -> None:
        """Write a checkpoint beside the last one, then put it in its place."""
        part = self.folder.with_suffix(".part")
        with quiet("accelerate"):  # tied weights are one tensor in the file: so they should be
            self.accelerator.save_state(str(part), safe_serialization=True)
        if self.accelerator.is_main_process:
            (part / "step").write_text(str(step))
            (part / "seconds").write_text(f"{self.seconds:.1f}")
            shutil.rmtree(self.folder, ignore_errors=True)
            part.rename(self.folder)
        self.accelerator.wait_for_everyone()

    def _resume(self) -> int:
        if not (self.folder / "step").is_file():
            return 0
        self.accelerator.load_state(str(self.folder))
        self._before = float((self.folder / "seconds").read_text())
        self._started = time.monotonic()
        return int((self.folder / "step").read_text())


def _as_is(batch: Any) -> Any:
    """`Pairs` gives whole batches."""
    return batch


def _groups(model: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Weight decay for matrices and kernels, none for biases and norms."""
    decay = [p for p in model.parameters() if p.ndim > 1]
    plain = [p for p in model.parameters() if p.ndim <= 1]
    return [
        {"params": decay, "weight_decay": weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]


def _sgd(model: nn.Module, schedule: Schedule) -> torch.optim.Optimizer:
    groups = _groups(model, schedule.weight_decay)
    return torch.optim.SGD(groups, schedule.lr, schedule.momentum, nesterov=True)


def _adamw(model: nn.Module, schedule: Schedule) -> torch.optim.Optimizer:
    groups = _groups(model, schedule.weight_decay)
    return torch.optim.AdamW(groups, schedule.lr, schedule.betas, fused=True)


OPTIMIZERS = {"sgd": _sgd, "adamw": _adamw}


def augment(pixels: Tensor, schedule: Schedule, seed: int) -> Tensor:
    """Random crops of zero-padded pictures, half of them mirrored: uint8, N x H x W x 3."""
    generator = torch.Generator().manual_seed(seed)
    count, height, width, _ = pixels.shape
    pad = schedule.pad
    padded = nnf.pad(pixels, (0, 0, pad, pad, pad, pad))
    top, left = torch.randint(0, 2 * pad + 1, (2, count), generator=generator)
    rows = (top[:, None] + torch.arange(height)).to(pixels.device)
    columns = (left[:, None] + torch.arange(width)).to(pixels.device)
    if schedule.flip:
        mirrored = torch.rand(count, generator=generator).to(pixels.device) < 0.5
        columns = torch.where(mirrored[:, None], columns.flip(1), columns)
    picture = torch.arange(count, device=pixels.device)[:, None, None]
    return padded[picture, rows[:, :, None], columns[:, None, :]]
