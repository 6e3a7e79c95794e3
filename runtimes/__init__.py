"""Engine files to answers, on the device. One module per engine; the file name is the registry.

Each engine module has two functions:

- `probe() -> Availability` never raises and never imports the engine's package twice;
- `open_session(file, signature, target, threads) -> Session` loads one engine file.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import cast

from sdk.errors import EngineUnavailableError
from sdk.runtimes.session import Session
from sdk.signature import Signature
from sdk.target import ENGINES, Availability, Target

IMPLEMENTED = tuple(name for name in ENGINES if (Path(__file__).parent / f"{name}.py").is_file())


def probe(engine: str) -> Availability:
    """What `engine` can do on this machine."""
    if engine not in IMPLEMENTED:
        return Availability(False, False, reason="this version has no runtime for it")
    return cast(Availability, importlib.import_module(f"sdk.runtimes.{engine}").probe())


def open_session(file: Path, signature: Signature, target: Target, *, threads: int) -> Session:
    """Load an engine file; EngineUnavailableError where this machine cannot run the target."""
    check_runnable(target)
    module = importlib.import_module(f"sdk.runtimes.{target.engine}")
    return cast(Session, module.open_session(file, signature, target, threads=threads))


def check_runnable(target: Target) -> None:
    """Raise EngineUnavailableError unless this machine can run `target`."""
    available = probe(target.engine)
    if not available.run:
        raise EngineUnavailableError(
            f"The engine {target.engine!r} cannot run here.",
            got=available.reason,
            fix=available.fix,
        )
    if target.device not in available.devices:
        raise EngineUnavailableError(
            f"The engine {target.engine!r} has no device {target.device!r} here.",
            expected=f"one of {', '.join(available.devices)}",
            got=target.device,
            fix="load with another device, or with fallback='warn'",
        )
