"""The machine and the software that a measurement was made with."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

# What engines choose their int8 and half-precision kernels by, as Linux names it.
INSTRUCTIONS = (
    "avx2", "fma", "avx512f", "avx_vnni", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_int8",
    "amx_bf16", "asimd", "asimdhp", "asimddp", "i8mm", "bf16", "sve",
)  # fmt: skip
HUGE_PAGES = "/sys/kernel/mm/transparent_hugepage/enabled"
RUNNING = ("edge-sdk", "numpy", "onnxruntime", "openvino", "torch")
COMPILING = (*RUNNING, "torchao", "onnx", "onnxscript")


def describe() -> dict[str, str]:
    """Processor, cores, system, load and versions; what the system does not tell is left out."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    facts = {
        "processor": _processor(),
        "instructions": _instructions(),
        "cores": f"{allowed} allowed of {os.cpu_count()}",
        "frequency governor": _read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        "memory": _memory(),
        "huge pages": huge_pages(),
        "system": platform.platform(),
        "load average": f"{os.getloadavg()[0]:.2f}" if hasattr(os, "getloadavg") else "",
        "python": platform.python_version(),
        **versions(RUNNING),
    }
    return {key: value for key, value in facts.items() if value}


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Of those that are installed."""
    found = {}
    for name in packages:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def huge_pages() -> str:
    """How Linux gives them: `always`, `madvise` or `never`; empty where there are none."""
    return _read(HUGE_PAGES).partition("[")[2].partition("]")[0]


def _processor() -> str:
    lines = _read("/proc/cpuinfo").splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _instructions() -> str:
    """Those of `INSTRUCTIONS` that the first core has."""
    lines = _read("/proc/cpuinfo").partition("\n\n")[0].splitlines()
    rows = [line.partition(":") for line in lines]
    flags = " ".join(value for key, _, value in rows if key.strip() in ("flags", "Features"))
    return " ".join(name for name in INSTRUCTIONS if name in flags.split())


def _memory() -> str:
    lines = _read("/proc/meminfo").splitlines()
    sizes = [int(line.split()[1]) for line in lines if line.startswith("MemTotal:")]
    return f"{sizes[0] / 2**20:.1f} GiB" if sizes else ""


def _read(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""
