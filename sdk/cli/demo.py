"""`edge demo`: the whole way once, on real data, in about a minute."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from rich.console import RenderableType
from rich.text import Text
from typer import Option

from sdk.cli import candidates
from sdk.cli.options import Resume
from sdk.cli.output import Answer, say, stages
from sdk.cli.recipe import student_document

if TYPE_CHECKING:
    from sdk.apps.demo import CodeDemo, Demo


def demo(
    *,
    output: Annotated[Path, Option("--output", "-o", help="The folder for what is made.")] = Path(
        "build/demo"
    ),
    code: Annotated[
        bool, Option("--code", help="Show models of code that come with the package instead.")
    ] = False,
    resume: Resume = True,
) -> Answer:
    """Distil a student on scanned digits, compile it for every engine here, and profile the best.

    Takes a minute or two on two cores. A second run takes up the trained weights. With --code,
    language models are compiled and generate, with and without drafts; nothing is trained.

    Example:

    ```console
    $ edge demo
    $ edge demo --code
    ```
    """
    from sdk.apps.demo import run, run_code

    if code:
        shown = run_code(output, resume=resume, say=say, progress=stages())
        document = {**student_document(shown.student), "text": shown.text}
        return Answer(document=document, view=lambda: _view_code(shown))
    made = run(output, resume=resume, say=say, progress=stages())
    document = {**student_document(made.student), "profile": str(made.profile)}
    return Answer(document=document, view=lambda: _view(made))


def _view(made: Demo) -> Iterator[RenderableType]:
    student = made.student
    manifests = [artifact.manifest for artifact in student.artifacts.values()]
    yield from candidates.evidence("Every build of the student", manifests)
    yield made.accuracy
    yield f"fastest artifact: {student.artifact.path} ({student.artifact.manifest.target})"
    yield f"model card:       {student.folder / 'MODEL_CARD.md'}"
    yield f"profile:          {made.profile}"


def _view_code(made: CodeDemo) -> Iterator[RenderableType]:
    student = made.student
    manifests = [artifact.manifest for artifact in student.artifacts.values()]
    yield from candidates.evidence("Every build of the target", manifests)
    yield from made.speeds
    yield Text(made.prompt + made.text)
    yield f"fastest artifact: {student.artifact.path} ({student.artifact.manifest.target})"
    yield f"model card:       {student.folder / 'MODEL_CARD.md'}"
