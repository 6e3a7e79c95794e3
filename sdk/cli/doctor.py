"""`edge doctor`: what this machine can compile for and run."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import RenderableType

import sdk
from sdk.cli.output import Answer, size, table
from sdk.extras import EXTRA, installed
from sdk.model import default_threads
from sdk.target import Availability

# What engines choose int8 and half-precision kernels by.
FEATURES = (
    "avx2", "fma", "avx512f", "avx_vnni", "avx512_vnni", "avx512_bf16", "avx512_fp16",
    "amx_int8", "amx_bf16", "asimd", "asimddp", "i8mm", "bf16", "fphp", "sve",
)  # fmt: skip


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
    machine = _machine()
    missing = _missing_packages()
    return Answer(
        document={"engines": engines, "machine": machine, "missing_packages": missing},
        view=lambda: _view(engines, machine, missing),
        ok=any(engine.run for engine in engines.values()),
    )


def _view(
    engines: dict[str, Availability], machine: dict[str, Any], missing: dict[str, str]
) -> Iterator[RenderableType]:
    columns = ("engine", "compile", "run", "version", "devices", "precisions", "missing", "fix")
    yield table("Engines", columns, [_row(name, found) for name, found in engines.items()])
    shown = {**machine, "memory": size(machine["memory"])} if machine["memory"] else machine
    rows = [(key, " ".join(v) if isinstance(v, list) else v) for key, v in shown.items()]
    yield table("Machine", ("", ""), rows)
    if missing:
        yield table("Optional packages that are not installed", ("package", "fix"), missing.items())
    usable = [name for name, found in engines.items() if found.run]
    yield f"Usable here: {', '.join(usable)}." if usable else "No engine can run here."


def _row(name: str, found: Availability) -> tuple[str, ...]:
    return (
        name,
        "yes" if found.compile else "no",
        "yes" if found.run else "no",
        found.version or "",
        " ".join(found.devices),
        " ".join(found.precisions),
        found.reason or "",
        found.fix or "",
    )


def _machine() -> dict[str, Any]:
    cpu = _cpuinfo()
    flags = f"{cpu.get('flags', '')} {cpu.get('Features', '')}".split()
    return {
        "edge-sdk": version("edge-sdk"),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cpu": cpu.get("model name") or platform.processor() or platform.machine(),
        "cpu_features": [feature for feature in FEATURES if feature in flags],
        "cores": default_threads(),
        "memory": _memory(),
    }


def _cpuinfo() -> dict[str, str]:
    """The first processor of Linux's /proc/cpuinfo; nothing elsewhere."""
    path = Path("/proc/cpuinfo")
    if not path.is_file():
        return {}
    first = path.read_text().split("\n\n")[0]
    pairs = (line.partition(":") for line in first.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


def _memory() -> int | None:
    """Bytes of memory, where the system tells."""
    names = getattr(os, "sysconf_names", {})
    if "SC_PHYS_PAGES" not in names:
        return None
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _missing_packages() -> dict[str, str]:
    return {
        package: f"pip install 'edge-sdk[{extra}]'"
        for package, extra in EXTRA.items()
        if not installed(package)
    }
