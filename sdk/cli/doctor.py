"""`edge doctor`: what this machine can compile for and run."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import RenderableType

import sdk
from sdk.cli.output import Answer, table
from sdk.environment import describe
from sdk.extras import EXTRA, installed
from sdk.kernels.status import KernelStatus, status
from sdk.target import Availability


def doctor() -> Answer:
    """Say which engines work on this machine, what is missing, and how to fix it.

    Exit code 1 where no engine can run.

    Examples:

    ```console
    $ edge doctor
    $ edge doctor --json
    ```
    """
    engines = sdk.engines()
    machine = describe()
    kernels = status()
    missing = _missing_packages()
    return Answer(
        document={
            "engines": engines,
            "machine": machine,
            "kernels": kernels,
            "missing_packages": missing,
        },
        view=lambda: _view(engines, machine, kernels, missing),
        ok=any(engine.run for engine in engines.values()),
    )


def _view(
    engines: dict[str, Availability],
    machine: dict[str, str],
    kernels: KernelStatus,
    missing: dict[str, str],
) -> Iterator[RenderableType]:
    columns = ("engine", "device", "version", "compile", "run", "checked on", "precisions",
               "missing", "fix")  # fmt: skip
    rows = [row for name, found in engines.items() for row in _rows(name, found)]
    yield table("Engines", columns, rows)
    yield table("Machine", ("", ""), machine.items())
    yield table("Plugin kernels", ("", ""), _kernels(kernels))
    if missing:
        yield table("Optional packages that are not installed", ("package", "fix"), missing.items())
    usable = [name for name, found in engines.items() if found.run]
    yield f"Usable here: {', '.join(usable)}." if usable else "No engine can run here."


def _kernels(found: KernelStatus) -> Iterator[tuple[str, str]]:
    """Where they are native, or that models get ordinary operators in their place, and why."""
    if found.library is None:
        yield "library", f"none: {found.reason}"
        if found.fix is not None:
            yield "fix", found.fix
        return
    yield "library", found.library
    yield "instructions", str(found.instructions)
    for engine, state in found.engines.items():
        yield f"for {engine}", state
    yield "kernels", " ".join(f"{n} {version}" for n, version in found.kernels.items())


def _rows(name: str, found: Availability) -> Iterator[tuple[str, ...]]:
    """A row for each device, or one that says why there is none."""
    if not found.devices:
        yield (name, "", found.version or "", "no", "no", "", "", found.reason or "",
               found.fix or "")  # fmt: skip
    for device, support in found.devices.items():
        yield (
            name,
            device,
            found.version or "",
            "yes" if support.compile else "no",
            "yes" if support.run else "no",
            support.checked_on if support.compile else "",
            " ".join(support.precisions),
            support.reason or "",
            support.fix or "",
        )


def _missing_packages() -> dict[str, str]:
    return {
        package: f"pip install 'edge-sdk[{extra}]'"
        for package, extra in EXTRA.items()
        if not installed(package)
    }
