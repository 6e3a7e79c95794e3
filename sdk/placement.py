"""Which operator runs where: the table of an artifact, and the policy on falling back."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace

from sdk.errors import EngineError, InputError, UnsupportedOperatorError
from sdk.manifest import Placed
from sdk.runtimes.session import Placement, Session
from sdk.signature import Array
from sdk.target import Target

FALLBACKS = ("forbid", "warn", "allow")
SHOWN = 5  # operators that a message names


class FallbackWarning(UserWarning):
    """The model, or a part of it, runs on another device than the one asked for."""


def check_policy(fallback: str) -> None:
    """Raise InputError unless `fallback` is one of `FALLBACKS`."""
    if fallback not in FALLBACKS:
        raise InputError(
            "The fallback policy is not known.",
            expected=f"one of {', '.join(FALLBACKS)}",
            got=repr(fallback),
        )


def enforce(
    rows: Sequence[Placement | Placed], target: Target, fallback: str, *, stacklevel: int = 3
) -> None:
    """Act on operators that the target's device does not run.

    `forbid` raises UnsupportedOperatorError, `warn` gives a FallbackWarning, `allow` does nothing.
    """
    strays = [row for row in rows if row.device != target.device]
    if not strays or fallback == "allow":
        return
    named = "; ".join(f"{r.operator} ({r.kind}) on {r.device}: {r.reason}" for r in strays[:SHOWN])
    more = f"; and {len(strays) - SHOWN} more" if len(strays) > SHOWN else ""
    what = f"{len(strays)} of {len(rows)} operators do not run on {target.device} of {target}"
    if fallback == "warn":
        warnings.warn(f"{what}: {named}{more}.", FallbackWarning, stacklevel=stacklevel)
        return
    raise UnsupportedOperatorError(
        f"{what}.",
        got=f"{named}{more}",
        fix="change these operators, take another precision, or pass fallback='warn'",
    )


def place(session: Session, feed: Mapping[str, Array] | None, runs: int) -> tuple[Placed, ...]:
    """The session's placement; with `feed`, and each operator's share of the time over `runs`."""
    rows = [
        Placed(r.operator, r.kind, r.device, r.kernel, r.reason, nodes=r.nodes)
        for r in session.placement()
    ]
    if feed is None:
        return tuple(rows)
    times = _times(session, feed, runs)
    total = sum(times.values())
    if not total:
        return tuple(rows)
    return tuple(replace(row, share=times.get(row.operator, 0.0) / total) for row in rows)


def _times(session: Session, feed: Mapping[str, Array], runs: int) -> dict[str, float]:
    """Operator -> microseconds over all runs; empty where the engine's profiler fails."""
    try:
        operators = session.profile(feed, runs=runs).operators
    except EngineError:
        return {}
    times: dict[str, float] = {}
    for row in operators:
        times[row.operator] = times.get(row.operator, 0.0) + sum(row.durations)
    return times
