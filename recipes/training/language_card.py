"""The model card of a language model and its drafts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sdk.artifact import Artifact
from sdk.recipes.base import Recipe
from sdk.recipes.card import heading, table, write


def write_card(folder: Path, recipe: Recipe, figures: Mapping[str, Any], best: Artifact) -> None:
    """Write MODEL_CARD.md and report.json into `folder`."""
    parts = (
        heading(recipe, best),
        _texts(figures["corpus"]),
        _models(figures),
        _builds(figures),
        _speculation(figures["speculation"]),
        _claim(recipe, figures["speculation"]),
    )
    write(folder, recipe, figures, parts)


def _texts(corpus: Mapping[str, Any]) -> str:
    learnt, held = corpus["train"], corpus["test"]
    return (
        f"## Texts\n\nLearnt from: {learnt['texts']} texts, {learnt['bytes'] / 1e6:.1f} MB, of "
        f"{len(learnt['groups'])} groups, which are {learnt['rows']} rows of tokens with the "
        f"exercises in editing. Held out: {held['texts']} texts, {held['bytes'] / 1e6:.1f} MB: "
        f"{', '.join(held['groups'])}. What the models write carries no licence of its own; the "
        "texts carry theirs."
    )


def _models(figures: Mapping[str, Any]) -> str:
    header = ("model", "parameters", "steps", "training", "held-out nats per token",
              "bits per byte")  # fmt: skip
    rows = [
        (
            name,
            f"{found['parameters'] / 1e6:.2f} M",
            str(found["steps"]),
            f"{found['training_seconds'] / 60:.1f} min",
            f"{found['loss']:.3f}",
            f"{found['per_byte']:.3f}",
        )
        for name, found in figures["models"].items()
    ]
    found = next(iter(figures["models"].values()))
    return (
        f"## Models\n\n{table(header, rows)}\n\nThe figures are of {found['tokens']} held-out "
        f"tokens. Wall time of everything, with interruptions taken out: "
        f"{figures['seconds']:.0f} s."
    )


def _builds(figures: Mapping[str, Any]) -> str:
    speeds = figures["tokens_per_second"]
    rows = [
        (one["target"], f"{one['bytes'] / 1e6:.2f} MB", f"{speeds[one['target']]:.0f}")
        for one in figures["builds"]
    ]
    notes = [
        f"`{name}` was refused:\n\n```\n{why}\n```" for name, why in figures["refused"].items()
    ]
    header = ("target", "size", "tokens per second, plain")
    return "\n\n".join((f"## Builds\n\n{table(header, rows)}", *notes))


def _speculation(rows: list[dict[str, Any]]) -> str:
    header = ("prompts", "draft", "tokens per second", "speed over none",
              "tokens per pass at 4 drafted", "accepted of drafted", "same tokens")  # fmt: skip
    cells = [
        (
            row["prompts"],
            row["draft"],
            f"{row['tokens_per_second']:.0f}",
            f"{row['speedup']:.2f}",
            f"{row['tokens_per_pass']:.2f}",
            "" if row["acceptance"] is None else f"{row['acceptance']:.0%}",
            "yes" if row["same"] else "no",
        )
        for row in rows
    ]
    return (
        f"## Drafts\n\n{table(header, cells)}\n\nGreedy, on held-out prompts; speeds are medians "
        "with drafts as long as the budget finds worth their cost."
    )


def _claim(recipe: Recipe, rows: list[dict[str, Any]]) -> str:
    found = {(row["prompts"], row["draft"]): row["acceptance"] for row in rows}
    gains = [
        f"{kind}: {acceptance - found[kind, ALONE]:+.1%}"
        for (kind, name), acceptance in found.items()
        if name == DISTILLED
    ]
    return (
        f"## The paper's claim and ours\n\n{recipe.CLAIM}\n\nHere, what distillation adds to the "
        f"share of accepted tokens: {'; '.join(gains)}."
    )


ALONE, DISTILLED = "draft, from texts alone", "draft, distilled"
