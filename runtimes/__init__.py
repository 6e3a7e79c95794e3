"""Engine files to answers, on the device. One module per engine; the file name is the registry.

Each engine module has two functions,

- `probe() -> Availability` never raises and never imports the engine's package twice;
- `open_session(file, signature, target, threads) -> Session` loads one engine file; where the
  engine has a binding for plugin kernels, it takes a `plugin`, too;

and a third where its files are tied to a library version or a chip:

- `check_requires(requires)` refuses a machine that is not what they were built for.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import cast

from sdk.errors import EngineUnavailableError
from sdk.manifest import KernelUse
from sdk.runtimes.plugins import plugin_of
from sdk.runtimes.session import Session
from sdk.signature import Signature
from sdk.target import ENGINES, Availability, DeviceSupport, Target

IMPLEMENTED = tuple(name for name in ENGINES if (Path(__file__).parent / f"{name}.py").is_file())


def probe(engine: str) -> Availability:
    """What `engine` can do on this machine."""
    if engine not in IMPLEMENTED:
        return Availability(reason="this version has no runtime for it")
    return cast(Availability, _module(engine).probe())


def support_of(target: Target) -> DeviceSupport:
    """What this machine can do for the target's device; EngineUnavailableError where nothing."""
    available = probe(target.engine)
    if not available.devices:
        raise EngineUnavailableError(
            f"The engine {target.engine!r} cannot run here.",
            got=available.reason,
            fix=available.fix,
        )
    found = available.devices.get(target.device)
    if found is None:
        raise EngineUnavailableError(
            f"The engine {target.engine!r} has no device {target.device!r} here.",
            expected=f"one of {', '.join(available.devices)}",
            got=target.device,
            fix="load with another device, or with fallback='warn'",
        )
    return found


def open_session(
    file: Path,
    signature: Signature,
    target: Target,
    *,
    threads: int,
    kernels: Sequence[KernelUse] = (),
) -> Session:
    """Load an engine file, and the plugin kernels that it needs.

    EngineUnavailableError where this machine cannot run the target, KernelMissingError where it has
    not the kernels.
    """
    check_runnable(target)
    plugin = plugin_of(target.engine, kernels)
    options = {} if plugin is None else {"plugin": plugin}
    module = _module(target.engine)
    return cast(Session, module.open_session(file, signature, target, threads=threads, **options))


def check_requires(target: Target, requires: Mapping[str, str]) -> None:
    """Raise EngineUnavailableError unless this machine is what the engine files were built for."""
    check = getattr(_module(target.engine), "check_requires", None)
    if check is not None:
        check(requires)


def check_runnable(target: Target) -> None:
    """Raise EngineUnavailableError unless this machine can run `target`."""
    support = support_of(target)
    if not support.run:
        raise EngineUnavailableError(
            f"The engine {target.engine!r} cannot run on {target.device!r} here.",
            got=support.reason,
            fix=support.fix,
        )


def _module(engine: str) -> ModuleType:
    return importlib.import_module(f"sdk.runtimes.{engine}")
