"""Recipes: from a teacher to a compact student, compiled and measured."""

from __future__ import annotations

import ast
import dataclasses
import difflib
import inspect
import textwrap
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

from rich.console import RenderableType
from typer import Argument, Option

import sdk
from sdk.cli import candidates
from sdk.cli.options import Overwrite, Resume
from sdk.cli.output import Answer, stages, table
from sdk.errors import InputError

if typing.TYPE_CHECKING:
    from sdk.recipes.base import Recipe, Student

Name = Annotated[str, Argument(help="The recipe's name: see `edge recipe list`.")]
WORDS = {"true": True, "yes": True, "false": False, "no": False}


def list_recipes() -> Answer:
    """List the recipes, with their presets.

    Example:

    ```console
    $ edge recipe list
    ```
    """
    from sdk import recipes

    found = [
        {"name": name, "presets": list(kind.PRESETS), "what": _summary(kind)}
        for name in recipes.names()
        for kind in [recipes.recipe_class(name)]
    ]
    rows = [(row["name"], ", ".join(row["presets"]), row["what"]) for row in found]
    return Answer(
        document={"recipes": found},
        view=lambda: [table("Recipes", ("name", "presets", "what it does"), rows)],
    )


def show(name: Name) -> Answer:
    """Show a recipe's settings: type, value in each preset, meaning.

    Example:

    ```console
    $ edge recipe show mobilenet_kd
    ```
    """
    from sdk import recipes

    kind = recipes.recipe_class(name)
    presets = {preset: kind.preset(preset) for preset in kind.PRESETS}
    help_of = _field_docs(kind)
    settings = [
        {
            "name": field.name,
            "type": str(field.type),
            "presets": {preset: getattr(made, field.name) for preset, made in presets.items()},
            "help": help_of.get(field.name, ""),
        }
        for field in dataclasses.fields(kind)
    ]
    document = {"name": name, "version": kind.VERSION, "what": inspect.getdoc(kind),
                "claim": kind.CLAIM, "settings": settings}  # fmt: skip
    return Answer(document=document, view=lambda: _view_settings(document))


def run(
    name: Name,
    *,
    output: Annotated[Path, Option("--output", "-o", help="The artifact; ends in .edge.")],
    preset: Annotated[str, Option(help="Which settings to start from.")] = "tiny",
    settings: Annotated[
        list[str] | None, Option("--set", help="key=value, replaces a setting. May be repeated.")
    ] = None,
    data: Annotated[str | None, Option(help="The recipe's data; the same as --set data=.")] = None,
    resume: Resume = True,
    overwrite: Overwrite = False,
) -> Answer:
    """Run a recipe: train, compile for every engine present, write the artifact and a model card.

    An interrupted run is taken up where it was. Its folder is the output's name in .run.

    Examples:

    ```console
    $ edge recipe run mobilenet_kd -o student.edge
    $ edge recipe run mobilenet_kd --preset full --data cifar10/ -o student.edge
    ```
    """
    from sdk import recipes

    chosen = _parse_settings(recipes.recipe_class(name), settings or ())
    if data is not None:
        chosen["data"] = data
    made = sdk.recipe(name, preset=preset, **chosen)
    student = made.run(output, resume=resume, overwrite=overwrite, progress=stages())
    return Answer(document=student_document(student), view=lambda: _view_student(student))


def student_document(student: Student) -> dict[str, Any]:
    """What a run made, as plain data."""
    return {
        "artifact": str(student.artifact.path),
        "target": student.artifact.manifest.target,
        "artifacts": {target: str(made.path) for target, made in student.artifacts.items()},
        "candidates": [
            row for made in student.artifacts.values() for row in candidates.rows(made.manifest)
        ],
        "report": dict(student.report),
        "folder": str(student.folder),
    }


def _view_student(student: Student) -> Iterator[RenderableType]:
    manifests = [artifact.manifest for artifact in student.artifacts.values()]
    yield from candidates.evidence("Built, measured, kept or rejected", manifests)
    yield f"{student.artifact.path}: {student.artifact.manifest.target}, the fastest"
    yield f"model card and figures: {student.folder}"


def _view_settings(document: dict[str, Any]) -> Iterator[RenderableType]:
    yield f"{document['name']}, version {document['version']}: {document['what']}"
    if document["claim"]:
        yield document["claim"]
    settings = document["settings"]
    presets = list(settings[0]["presets"])
    rows = [
        (s["name"], s["type"], *(s["presets"][preset] for preset in presets), s["help"])
        for s in settings
    ]
    yield table("Settings", ("setting", "type", *presets, "meaning"), rows)


def _summary(kind: type[Recipe]) -> str:
    return (inspect.getdoc(kind) or "").partition("\n")[0]


def _field_docs(kind: type) -> dict[str, str]:
    """The strings that stand below fields in the source of the class."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(kind))).body[0]
    assert isinstance(tree, ast.ClassDef)
    return {
        field.target.id: " ".join(doc.value.value.split())
        for field, doc in zip(tree.body, tree.body[1:], strict=False)
        if isinstance(field, ast.AnnAssign)
        and isinstance(field.target, ast.Name)
        and isinstance(doc, ast.Expr)
        and isinstance(doc.value, ast.Constant)
        and isinstance(doc.value.value, str)
    }


def _parse_settings(kind: type[Recipe], texts: Sequence[str]) -> dict[str, Any]:
    """`key=value` by the type of the setting; a tuple's items are separated by commas."""
    hints = typing.get_type_hints(kind)
    names = [field.name for field in dataclasses.fields(kind)]
    chosen = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or key not in names:
            near = difflib.get_close_matches(key, names, n=1)
            raise InputError(
                f"--set {text!r} does not name a setting."
                if equals
                else f"--set {text!r} lacks '='.",
                expected=f"key=value with a key among {', '.join(names)}",
                fix=f"did you mean {near[0]!r}?" if near else "see edge recipe show",
            )
        chosen[key] = _parse(key, value, hints[key])
    return chosen


def _parse(key: str, text: str, kind: Any) -> Any:
    if typing.get_origin(kind) is tuple:
        item = typing.get_args(kind)[0]
        return tuple(_parse(key, part.strip(), item) for part in text.split(",") if part.strip())
    try:
        return WORDS[text.lower()] if kind is bool else kind(text)
    except (ValueError, KeyError) as error:
        raise InputError(
            f"The setting {key}={text!r} does not parse.", expected=kind.__name__, got=repr(text)
        ) from error
