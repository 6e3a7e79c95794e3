"""Runs CMake once for what a build depends on, and keeps its result in a cache."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from sdk.errors import EngineError, EngineUnavailableError

WRONG = re.compile(r"error|undefined", re.IGNORECASE)
FIX = "install a C++ compiler and CMake (pip install cmake ninja), or reinstall where they are"


def cache_folder() -> Path:
    """Where built libraries are kept: EDGE_CACHE, or the user's cache folder."""
    root = os.environ.get("EDGE_CACHE") or os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "edge" / "kernels"


def missing_tools() -> tuple[str, ...]:
    """What a build needs and this machine has not."""
    tools = {"CMake": _tool("cmake"), "C++ compiler": compiler()}
    return tuple(name for name, found in tools.items() if found is None)


def compiler() -> str | None:
    """The C++ compiler: CXX, or the system's."""
    wanted = os.environ.get("CXX")
    return shutil.which(wanted) if wanted else shutil.which("c++") or shutil.which("g++")


def compiler_version() -> str:
    """What the compiler says of itself."""
    done = subprocess.run(
        [str(compiler()), "--version"], capture_output=True, text=True, check=True
    )
    return done.stdout


def made(source: Path, settings: Sequence[str], key: str, file: str, folder: Path | None) -> Path:
    """`file`, as CMake makes it of `source`; kept under `key`, which names all it depends on.

    The object files stay with the settings, so that only what changed is compiled.
    EngineUnavailableError where there is no compiler, EngineError with its errors where it fails.
    """
    if missing := missing_tools():
        raise EngineUnavailableError(
            "The kernels cannot be built here.", got=f"no {' and no '.join(missing)}", fix=FIX
        )
    folder = folder or cache_folder()
    target = folder / key / file
    work = folder / f"work-{digest([str(source), *settings])}"
    with _alone(folder / f"{work.name}.lock"):
        if not target.is_file():
            _build(source, work, settings)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(work / file, target.with_suffix(".new"))
            target.with_suffix(".new").rename(target)
    return target


def digest(parts: Sequence[str]) -> str:
    """A short name for `parts`."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _build(source: Path, work: Path, settings: Sequence[str]) -> None:
    print(f"edge: building {source} in {work} (minutes at most)", file=sys.stderr)
    work.mkdir(parents=True, exist_ok=True)
    cmake, ninja = _tool("cmake"), _tool("ninja")
    generator = ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"] if ninja else []
    jobs = os.environ.get("CMAKE_BUILD_PARALLEL_LEVEL") or str(len(os.sched_getaffinity(0)))
    compile_with = f"-DCMAKE_CXX_COMPILER={compiler()}"
    for command in (
        [cmake, "-S", source, "-B", work, *generator, compile_with, *settings],
        [cmake, "--build", work, "--parallel", jobs],
    ):
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
        if done.returncode:
            lines = (done.stdout + done.stderr).splitlines()
            wanted = [line for line in lines if WRONG.search(line)] or lines
            raise EngineError(
                "The kernels do not build.",
                got="\n".join(wanted[:20]),
                fix=f"run: {' '.join(map(str, command))}",
            )


def _tool(name: str) -> str | None:
    """On the path, or installed by pip beside this Python."""
    return shutil.which(name) or shutil.which(name, path=str(Path(sys.executable).parent))


@contextlib.contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """One process at a time."""
    import fcntl  # POSIX has it; elsewhere there is nothing to build

    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
