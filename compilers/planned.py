"""The row of a placement that a stand-in for an engine tells: what the files say, not a machine."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Planned:
    """Where one operator will run; the fields are those of a session's `Placement`."""

    operator: str
    kind: str
    device: str
    kernel: str
    reason: str
    nodes: tuple[str, ...] = ()
