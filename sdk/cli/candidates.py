"""The table of what was built, measured, kept or rejected: a manifest's evidence."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from rich.console import RenderableType

from sdk.cli.output import duration, size, table
from sdk.manifest import Candidate, Fidelity, Manifest
from sdk.target import Target

NOISY = 0.5  # interquartile range over median


def rows(manifest: Manifest) -> list[dict[str, Any]]:
    """One plain row for each candidate; latencies in microseconds, ratios above 1 are faster."""
    return [_row(manifest, candidate) for candidate in manifest.candidates]


def evidence(title: str, manifests: Sequence[Manifest]) -> Iterator[RenderableType]:
    """The rows of several manifests as one table, and a note where the times cannot be trusted."""
    found = [row for manifest in manifests for row in rows(manifest)]
    fidelities = [c.fidelity for manifest in manifests for c in manifest.candidates if c.fidelity]
    metric = next((f.metric for f in fidelities if f.metric is not None), "metric")
    columns = ("engine", "precision", ">size", ">p50", ">against fp32", ">against eager",
               f">{metric}", ">parity (rel. rms)", "checked on", "kept", "why")  # fmt: skip
    yield table(title, columns, [tuple(_cells(row)) for row in found])
    spread = max(map(_spread, manifests))
    if spread > NOISY:
        yield f"note: the times are rough: calls of a build differ by {spread:.0%} (busy machine?)"


def _spread(manifest: Manifest) -> float:
    latencies = (manifest.eager, *(candidate.latency for candidate in manifest.candidates))
    return max((latency.spread for latency in latencies if latency is not None), default=0.0)


def _row(manifest: Manifest, candidate: Candidate) -> dict[str, Any]:
    target = Target.parse(candidate.target)
    eager, latency = manifest.eager, candidate.latency
    return {
        "engine": target.engine,
        "device": target.device,
        "precision": target.precision,
        "settings": candidate.settings,
        "checked_on": candidate.checked_on,
        "bytes": candidate.bytes,
        "p50": latency.p50 if latency else None,
        "speedup": candidate.speedup,
        "speed_against_eager": eager.p50 / latency.p50 if eager and latency else None,
        "metric": _metric(manifest, candidate),
        "parity": max((output.rms for output in candidate.parity), default=None),
        "kept": candidate.kept,
        "reason": candidate.reason,
        "float_layers": list(candidate.float_layers),
    }


def _metric(manifest: Manifest, candidate: Candidate) -> float | None:
    """The caller's metric: its own for a lower precision, the reference of its sibling for fp32."""
    if candidate.fidelity is not None:
        return candidate.fidelity.measured
    if Target.parse(candidate.target).precision != "fp32":
        return None  # there is no build
    siblings: Iterator[Fidelity | None] = (other.fidelity for other in manifest.candidates)
    return next((fidelity.reference for fidelity in siblings if fidelity is not None), None)


def _cells(row: dict[str, Any]) -> Iterator[str]:
    yield row["engine"] if row["device"] == "cpu" else f"{row['engine']}:{row['device']}"
    yield " ".join([row["precision"], *row["settings"].values()])
    yield size(row["bytes"]) if row["bytes"] else ""
    yield "" if row["p50"] is None else duration(row["p50"])
    for ratio in (row["speedup"], row["speed_against_eager"]):
        yield "" if ratio is None else f"{ratio:.2f}x"
    yield "" if row["metric"] is None else f"{row['metric']:.4f}"
    yield "" if row["parity"] is None else f"{row['parity']:.1e}"
    yield row["checked_on"]
    yield "kept" if row["kept"] else "rejected"
    float_layers = ", ".join(row["float_layers"])
    yield row["reason"] + (f"; in float: {float_layers}" if float_layers else "")
