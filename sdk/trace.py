"""A profile as trace events, the format of Perfetto's and Chrome's trace viewers."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sdk.profiling import Operator, Profile, Span

TRACKS = {"call": 1, "operators": 2}
PROCESS = 1


def trace_events(profile: Profile) -> dict[str, Any]:
    """Complete events of one call: the call in one track, the operators in another. Times in us."""
    operators = {row.name: row for row in profile.operators}
    return {
        "displayTimeUnit": "ns",
        "otherData": {"target": profile.target, "created": profile.created, **profile.environment},
        "traceEvents": [
            _metadata("process_name", 0, f"{profile.name} on {profile.target}"),
            *(_metadata("thread_name", track, name) for name, track in TRACKS.items()),
            *(_event(span, operators.get(span.name)) for span in profile.timeline),
        ],
    }


def dumps(data: Any) -> str:
    """JSON that every parser reads: no NaN, one object a line at the first levels."""
    return json.dumps(data, ensure_ascii=False, allow_nan=False, indent=1)


def _metadata(kind: str, track: int, name: str) -> dict[str, Any]:
    return {"ph": "M", "name": kind, "pid": PROCESS, "tid": track, "args": {"name": name}}


def _event(span: Span, operator: Operator | None) -> dict[str, Any]:
    event = {
        "ph": "X",
        "name": span.name,
        "cat": span.track,
        "pid": PROCESS,
        "tid": TRACKS[span.track],
        "ts": round(span.start, 3),
        "dur": round(span.duration, 3),
    }
    if span.track == "operators" and operator is not None:
        event["args"] = {
            "kind": operator.kind,
            "device": operator.device,
            "mean_us": round(operator.microseconds, 3),
            "modules": ", ".join(operator.origin.modules),
            "operators": ", ".join(operator.origin.operators),
            "line": operator.origin.line,
            "traced by": operator.origin.how,
        }
    return event
