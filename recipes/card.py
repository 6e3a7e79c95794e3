"""What a run leaves to be read: `MODEL_CARD.md` for people, `report.json` for programs."""

from __future__ import annotations

import json
import platform
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from sdk.artifact import Artifact
from sdk.recipes.base import Recipe
from sdk.recipes.training.export import Exported

CARD, REPORT = "MODEL_CARD.md", "report.json"


def write_card(
    folder: Path, recipe: Recipe, figures: Mapping[str, Any], exported: Exported
) -> None:
    """Write both files into `folder`."""
    parts = (
        heading(recipe, exported.best),
        _students(figures),
        _builds(figures["builds"], figures["refused"]),
        _claim(recipe, figures),
    )
    write(folder, recipe, figures, parts)


def write(folder: Path, recipe: Recipe, figures: Mapping[str, Any], parts: Sequence[str]) -> None:
    """The card of these parts, with the settings at its end, and the report, into `folder`."""
    environment = {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "machine": platform.machine(),
        "python": platform.python_version(),
    }
    report = {"settings": asdict(recipe), "environment": environment, **figures}
    (folder / REPORT).write_text(json.dumps(report, indent=1))
    parts = (*parts, _settings(recipe, environment))
    (folder / CARD).write_text("\n\n".join(parts) + "\n")


def table(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    """A Markdown table."""
    lines = [header, tuple("---" for _ in header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def heading(recipe: Recipe, best: Artifact) -> str:
    """Name, what the recipe does, what was kept."""
    summary = (type(recipe).__doc__ or "").strip().splitlines()[0]
    return f"# {best.manifest.name}\n\n{summary}\n\nKept: `{best.manifest.target}`."


def _students(figures: Mapping[str, Any]) -> str:
    teacher, counts = figures["teacher"], figures["images"]
    rows = [
        (arm, f"{found['mean']:.2%}", f"{found['spread']:.2%}", _percents(found["accuracy"]))
        for arm, found in figures["students"].items()
    ]
    return "\n\n".join(
        (
            "## Accuracy",
            f"Top-1 on {counts['test']} test images. {counts['train']} training images, of which "
            f"{counts['labelled']} have labels for the student and {counts['pool']} are in the "
            f"unlabelled pool; {counts['validation']} more are the gate's.",
            f"Teacher ({teacher['from']}): {teacher['before']['accuracy']:.2%}, after it was "
            f"adapted to the images on all their labels: {teacher['after']['accuracy']:.2%}.",
            table(("student", "mean", "largest - smallest", "each seed"), rows),
            f"Every student takes {figures['steps']['student']} steps, after "
            f"{figures['steps']['teacher']} of the teacher. Wall time of everything, with "
            f"interruptions taken out: {figures['seconds']:.0f} s.",
        )
    )


def _percents(values: list[float]) -> str:
    return ", ".join(f"{value:.2%}" for value in values)


def _builds(builds: list[Mapping[str, Any]], refused: Mapping[str, str]) -> str:
    rows = [
        (
            build["engine"],
            build["precision"],
            f"{build['bytes'] / 1e6:.2f} MB ({build['size_ratio']:.2f})",
            f"{build['p50_us']:.0f} us",
            f"{build['speedup_over_eager']:.1f}x",
            "" if build["test_accuracy"] is None else f"{build['test_accuracy']:.2%}",
            f"{build['parity_rms']:.1e}",
            "kept" if build["kept"] else f"rejected: {build['reason']}",
            ", ".join(build["float_layers"]) or "none",
        )
        for build in builds
    ]
    header = ("engine", "precision", "size (of fp32)", "p50, batch 1", "speed over torch eager",
              "test top-1", "parity (rms)", "outcome", "layers left in float")  # fmt: skip
    notes = [f"`{target}` was refused:\n\n```\n{why}\n```" for target, why in refused.items()]
    return "\n\n".join((f"## Builds\n\n{table(header, rows)}", *notes))


def _claim(recipe: Recipe, figures: Mapping[str, Any]) -> str:
    students = figures["students"]
    measured = [
        f"{arm}: {students['ssld']['mean'] - found['mean']:+.2%}"
        for arm, found in students.items()
        if arm != "ssld"
    ]
    gap = "; ".join(measured) or "no baseline was trained"
    return f"## The paper's claim and ours\n\n{recipe.CLAIM}\n\nHere, SSLD against {gap} (top-1)."


def _settings(recipe: Recipe, environment: Mapping[str, Any]) -> str:
    settings = json.dumps(asdict(recipe), indent=1)
    return (
        f"## How to make it again\n\n```bash\n{_command(recipe)}\n```\n\n"
        f"```json\n{settings}\n```\n\nEnvironment: {json.dumps(environment)}"
    )


def _command(recipe: Recipe) -> str:
    """The command line with the settings that are not the preset's nearest to these."""
    chosen = asdict(recipe)
    options = {
        name: {k: v for k, v in chosen.items() if v != asdict(type(recipe).preset(name))[k]}
        for name in recipe.PRESETS
    }
    preset = min(options, key=lambda name: len(options[name]))
    changes = "".join(
        f" --set {shlex.quote(f'{key}={_as_option(value)}')}"
        for key, value in options[preset].items()
    )
    module = type(recipe).__module__.rpartition(".")[2]
    return f"edge recipe run {module} --preset {preset}{changes} --output student.edge"


def _as_option(value: Any) -> str:
    """A setting as `--set` reads it: a tuple's items are separated by commas."""
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
