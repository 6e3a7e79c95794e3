"""What a search found: the artifact, every candidate with its reason, the front, the layers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sdk.artifact import Artifact
from sdk.environment import describe
from sdk.files import check_suffix, write_whole
from sdk.manifest import Candidate
from sdk.search.front import loss, pareto
from sdk.search.layers import Layer
from sdk.structure import to_json
from sdk.target import Target


@dataclass(frozen=True, kw_only=True)
class Search:
    """A finished search; all times of the candidates are of one interleaved run."""

    artifact: Artifact
    layers: tuple[Layer, ...]
    """By cost, worst first; empty where nothing was quantized statically."""
    seconds: float
    built: int
    """Builds that were made."""
    reused: int
    """Builds that came from the cache."""
    cache: str | None
    budgets: Mapping[str, float | None]
    environment: dict[str, str] = field(default_factory=describe)

    @property
    def candidates(self) -> tuple[Candidate, ...]:
        """All that was tried, in order; each has the reason why it was kept or not."""
        return self.artifact.manifest.candidates

    @property
    def front(self) -> tuple[Candidate, ...]:
        """Those that no other beats in latency, size and accuracy together, fastest first."""
        return pareto(self.candidates)

    @property
    def metric(self) -> str | None:
        """The name of the caller's metric."""
        named = (c.fidelity.metric for c in self.candidates if c.fidelity is not None)
        return next(filter(None, named), None)

    def to_json(self) -> dict[str, Any]:
        """All of it as plain JSON values."""
        manifest = self.artifact.manifest
        front = self.front
        rows = [
            {
                **to_json(candidate),
                "precision": Target.parse(candidate.target).precision,
                "loss": to_json(loss(candidate)),
                "on_front": candidate in front,
            }
            for candidate in self.candidates
        ]
        return {
            "artifact": str(self.artifact.path),
            "target": manifest.target,
            "requested": manifest.requested,
            "metric": self.metric,
            "budgets": dict(self.budgets),
            "candidates": rows,
            "layers": to_json(self.layers),
            "eager": to_json(manifest.eager),
            "seconds": self.seconds,
            "built": self.built,
            "reused": self.reused,
            "cache": self.cache,
            "environment": self.environment,
        }

    def save(self, path: str | Path) -> None:
        """Write a report: `.html` opens offline in any browser, `.json` holds the same data."""
        import json

        from sdk.search.report import render

        suffix = check_suffix(path, ".html", ".json")
        text = render(self) if suffix == ".html" else json.dumps(self.to_json(), indent=1)
        write_whole(Path(path), text)
