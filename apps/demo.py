"""The whole way once: from training to artifacts for every engine here, and what they do.

For pictures a student is trained and the fastest artifact profiled; for code, the models that come
with the package are compiled, and generate with and without a draft.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import sdk

if TYPE_CHECKING:
    from sdk.recipes.base import Student

Progress = Callable[[str, int, int], None]
PROMPT = "import os\nimport sys\n\n\ndef main(args):\n    parser = argparse."
TOKENS = 48


@dataclass(frozen=True)
class Demo:
    """What the demo made: the student with its artifacts, and the path of the HTML profile."""

    student: Student
    profile: Path

    @property
    def accuracy(self) -> str:
        """One line: top-1 of the teacher and of each student on the test images."""
        report = self.student.report
        students = {arm: found["mean"] for arm, found in report["students"].items()}
        found = {"teacher": report["teacher"]["after"]["accuracy"], **students}
        figures = ", ".join(f"{name} {accuracy:.1%}" for name, accuracy in found.items())
        return f"top-1 on {report['images']['test']} test images: {figures}"


def run(
    folder: Path,
    *,
    resume: bool = True,
    say: Callable[[str], None] = print,
    progress: Progress | None = None,
) -> Demo:
    """Run the `tiny` recipe into `folder` and profile its fastest artifact.

    `say` gets a line for each step, `progress` what happens within one. Running it again replaces
    the artifacts; with `resume` the trained weights are taken up.
    """
    usable = [name for name, found in sdk.engines().items() if found.compile and found.run]
    say(f"1/3 engines that compile and run here: {', '.join(usable)}")
    say("2/3 distil a student on scanned digits, compile it for each engine at int8, check, time")
    recipe = sdk.recipe("mobilenet_kd", preset="tiny")
    student = recipe.run(folder / "student.edge", resume=resume, overwrite=True, progress=progress)
    for target, why in student.report["refused"].items():
        say(f"{target} was refused, its engine gets fp32: {why}")
    say(f"3/3 profile {student.artifact.manifest.target}, the fastest")
    profile = folder / "profile.html"
    sdk.profile(student.artifact.path).save(profile)
    return Demo(student, profile)


@dataclass(frozen=True)
class CodeDemo:
    """The models as artifacts with their figures, and how the target went on from some code."""

    student: Student
    text: str
    prompt: str = PROMPT

    @property
    def speeds(self) -> list[str]:
        """A line for each kind of prompts and draft."""
        return [
            f"{row['prompts']}, draft: {row['draft']}: {row['tokens_per_second']:.0f} tokens per "
            f"second ({row['speedup']:.2f}x), {row['tokens_per_pass']:.2f} per pass of 4 drafted"
            for row in self.student.report["speculation"]
        ]


def run_code(
    folder: Path,
    *,
    resume: bool = True,
    say: Callable[[str], None] = print,
    progress: Progress | None = None,
) -> CodeDemo:
    """Compile the models of code that come with the package into `folder`, and generate."""
    say("1/2 compile target and drafts, and generate on prompts that they have not learnt from")
    recipe = sdk.recipe("causal_lm", preset="shipped")
    student = recipe.run(folder / "code.edge", resume=resume, overwrite=True, progress=progress)
    say("2/2 go on from some code")
    with sdk.load(student.artifact.path) as model:
        text = model.generate(PROMPT, max_new_tokens=TOKENS, drafter="prompt_lookup").text
    return CodeDemo(student, text)
