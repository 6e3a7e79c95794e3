"""`edge inspect`: what an artifact says about itself, without running it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping

from rich.console import RenderableType

import sdk
from sdk.artifact import PROCESSOR
from sdk.cli import candidates
from sdk.cli.options import ArtifactPath
from sdk.cli.output import Answer, size, table


def inspect(path: ArtifactPath) -> Answer:
    """Show the signature, target, evidence, files, provenance and processing of an artifact.

    Every file is checked against its hash first; no engine is loaded.

    Examples:

    ```console
    $ edge inspect student.edge
    $ edge inspect student.edge --json | jq .manifest.candidates
    ```
    """
    artifact = sdk.Artifact.open(path)
    text = artifact.read(PROCESSOR)
    processor = None if text is None else json.loads(text)
    document = {"artifact": str(path), "bytes": artifact.size, "manifest": artifact.manifest,
                "processor": processor}  # fmt: skip
    return Answer(document=document, view=lambda: _view(artifact, processor))


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
    if manifest.waivers:
        yield f"Waived gates: {', '.join(manifest.waivers)}"
    if processor is not None:
        yield table("Processor", ("", ""), [(key, _short(v)) for key, v in processor.items()])


def _short(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 300 else f"{text[:300]} ..."
