"""Arguments and options that several verbs have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

ArtifactPath = Annotated[Path, Argument(help="The artifact, a folder NAME.edge.")]
Device = Annotated[str, Option(help="auto (the artifact's own), cpu, gpu or npu.")]
Overwrite = Annotated[bool, Option("--overwrite", help="Replace an artifact that is there.")]
Threads = Annotated[
    int | None, Option(min=1, help="The engine's threads. Default: all cores allowed.")
]
Resume = Annotated[bool, Option(help="Take up an earlier run of the same settings.")]
