"""`edge verify`: is the artifact whole, and does it still compute what it computed?"""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import RenderableType

import sdk
from sdk.cli.options import ArtifactPath, Device, Threads
from sdk.cli.output import Answer, say, table
from sdk.parity import ParityReport

COLUMNS = ("output", ">max abs", ">relative rms", ">worst", ">SQNR dB", ">cosine", "holds", "note")


def verify(path: ArtifactPath, *, device: Device = "auto", threads: Threads = None) -> Answer:
    """Check an artifact on this device: every hash, the signature and the golden outputs.

    Exit code 1 where a file was changed or an output is out of bounds.

    Examples:

    ```console
    $ edge verify student.edge
    $ edge verify student.edge --device npu --json
    ```
    """
    say(f"... hashes, signature and golden outputs of {path}")
    report = sdk.verify(path, device=device, threads=threads)
    document = {"artifact": str(path), "holds": report.ok, "tolerance": report.tolerance,
                "outputs": report.outputs}  # fmt: skip
    return Answer(document=document, view=lambda: _view(report), ok=report.ok)


def _view(report: ParityReport) -> Iterator[RenderableType]:
    rows = [
        (o.name, f"{o.max_abs:.3g}", f"{o.rms:.3g}", f"{o.worst:.3g}", f"{o.sqnr_db:.1f}",
         f"{o.cosine:.6f}", "yes" if o.ok else "NO", o.note)
        for o in report.outputs
    ]  # fmt: skip
    yield table("Golden outputs on this device", COLUMNS, rows)
    limit = report.tolerance
    verdict = "It holds" if report.ok else "It does not hold"
    yield f"{verdict}: relative rms <= {limit.rms:g} and worst <= {limit.worst:g} of each output."
