"""`edge inspect`: what an artifact says about itself, without running it."""

from __future__ import annotations

import itertools
import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated

from rich.console import RenderableType
from typer import Option

import sdk
from sdk.artifact import PROCESSOR
from sdk.cli import candidates
from sdk.cli.options import ArtifactPath
from sdk.cli.output import Answer, size, table
from sdk.manifest import Placed


def inspect(
    path: ArtifactPath,
    *,
    operators: Annotated[
        bool, Option("--operators", help="List each operator: device, kernel, reason, time.")
    ] = False,
) -> Answer:
    """Show the signature, target, evidence, placement, files and processing of an artifact.

    Every file is checked against its hash first; no engine is loaded.

    Examples:

    ```console
    $ edge inspect student.edge
    $ edge inspect student.edge --operators
    $ edge inspect student.edge --json | jq .manifest.candidates
    ```
    """
    artifact = sdk.Artifact.open(path)
    text = artifact.read(PROCESSOR)
    processor = None if text is None else json.loads(text)
    placed = artifact.placement()
    document = {"artifact": str(path), "bytes": artifact.size, "manifest": artifact.manifest,
                "placement": placed, "processor": processor}  # fmt: skip
    return Answer(
        document=document,
        view=lambda: itertools.chain(
            _view(artifact, processor), _placement(placed, operators=operators)
        ),
    )


def _view(
    artifact: sdk.Artifact, processor: Mapping[str, object] | None
) -> Iterator[RenderableType]:
    manifest = artifact.manifest
    asked = f" (asked for: {manifest.requested})" if manifest.requested != manifest.target else ""
    yield f"{manifest.name}: {manifest.target}{asked}, {size(artifact.size)}"
    for name, function in manifest.functions.items():
        roles = {"input": function.signature.inputs, "output": function.signature.outputs}
        rows = [(role, spec.name, spec) for role, specs in roles.items() for spec in specs]
        yield table(f"Function {name}, in {function.file}", ("", "name", "tensor"), rows)
    yield from candidates.evidence("Evidence", [manifest])
    files = [(name, size(f.bytes), f.sha256) for name, f in manifest.files.items()]
    yield table("Files", ("file", ">size", "SHA-256"), files)
    facts = {**manifest.provenance, **manifest.tools, "threads": manifest.threads,
             "checked batches": manifest.check_batches}  # fmt: skip
    yield table("Provenance and tools", ("", ""), facts.items())
    if manifest.requires:
        yield table("Tied to", ("", ""), manifest.requires.items())
    if manifest.waivers:
        yield f"Waived gates: {', '.join(manifest.waivers)}"
    if processor is not None:
        yield table("Processor", ("", ""), [(key, _short(v)) for key, v in processor.items()])


def _placement(placed: Sequence[Placed], *, operators: bool) -> Iterator[RenderableType]:
    """Each operator, or for each device and reason how many, and their part of the time."""
    if operators:
        columns = ("operator", "kind", "device", "kernel", ">time", "why")
        rows = [(p.operator, p.kind, p.device, p.kernel, _share(p.share), p.reason) for p in placed]
        yield table("Operators", columns, rows)
        return
    groups: dict[tuple[str, str], list[Placed]] = defaultdict(list)
    for row in placed:
        groups[row.device, row.reason].append(row)
    summary = [
        (device, len(rows), _share(_total(rows)), reason)
        for (device, reason), rows in groups.items()
    ]
    yield table("Placement", ("device", ">operators", ">time", "why"), summary)


def _total(rows: Sequence[Placed]) -> float | None:
    shares = [row.share for row in rows if row.share is not None]
    return sum(shares) if shares else None


def _share(share: float | None) -> str:
    return "" if share is None else f"{share:.1%}"


def _short(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 300 else f"{text[:300]} ..."
