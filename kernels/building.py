"""Builds the native library with CMake, into a cache.

An installed wheel brings its library. A checkout has none: it is built when it is first needed, and
again when a source, a setting or the compiler is another one. The object files stay, so that only
what changed is compiled.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from sdk.errors import EngineError, EngineUnavailableError

HERE = Path(__file__).parent
LIBRARY = "libedge_kernels.so"
SOURCES = (".h", ".cc", ".txt", ".cmake")
ONLY = "EDGE_KERNELS_ONLY"
WRONG = re.compile(r"error|undefined", re.IGNORECASE)
FIX = "install a C++ compiler and CMake (pip install cmake ninja), or reinstall where they are"


def cache_folder() -> Path:
    """Where built libraries are kept: EDGE_CACHE, or the user's cache folder."""
    root = os.environ.get("EDGE_CACHE") or os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "edge" / "kernels"


def missing_tools() -> tuple[str, ...]:
    """What a build needs and this machine has not."""
    tools = {"CMake": _tool("cmake"), "a C++ compiler": compiler()}
    return tuple(name for name, found in tools.items() if found is None)


def compiler() -> str | None:
    """The C++ compiler: CXX, or the system's."""
    wanted = os.environ.get("CXX")
    return shutil.which(wanted) if wanted else shutil.which("c++") or shutil.which("g++")


def built(
    *, extra: Sequence[Path] = (), sanitize: str = "", folder: Path | None = None, root: Path = HERE
) -> Path:
    """The library of the kernels below `root` and the folders `extra`, built if it is not there.

    `EDGE_KERNELS_ONLY`, names separated by commas, leaves out the other kernels.
    EngineUnavailableError where there is no compiler, EngineError with its errors where it fails.
    """
    missing = missing_tools()
    if missing:
        raise EngineUnavailableError(
            "The kernels cannot be built here.", got=f"no {' and no '.join(missing)}", fix=FIX
        )
    only, settings = _only(), _settings(extra, sanitize)
    folder = folder or cache_folder()
    work = folder / f"work-{_digest([str(root), *settings])}"
    with _alone(folder / f"{work.name}.lock"):
        target = folder / f"{source_digest(root, extra, only, settings)}" / LIBRARY
        if not target.is_file():
            _build(root, work, settings)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(work / LIBRARY, target.with_suffix(".new"))
            target.with_suffix(".new").rename(target)
    return target


def is_built() -> bool:
    """Whether `built()` would find the library."""
    if missing_tools():
        return False
    digest = source_digest(HERE, (), _only(), _settings((), ""))
    return (cache_folder() / digest / LIBRARY).is_file()


def _only() -> tuple[str, ...]:
    return tuple(sorted(filter(None, os.environ.get(ONLY, "").split(","))))


def _settings(extra: Sequence[Path], sanitize: str) -> list[str]:
    return [
        f"-DEDGE_EXTRA={';'.join(map(str, extra))}",
        f"-DEDGE_ONLY={';'.join(_only())}",
        f"-DEDGE_SANITIZE={sanitize}",
        f"-DCMAKE_CXX_COMPILER={compiler()}",
    ]


def source_digest(
    root: Path, extra: Sequence[Path], only: Sequence[str], settings: Sequence[str]
) -> str:
    """Of all that decides what the library is: sources, settings and the compiler's version."""
    version = subprocess.run(
        [str(compiler()), "--version"], capture_output=True, text=True, check=True
    )
    parts = [version.stdout, *settings]
    for place in (root, *extra):
        for file in sorted(place.rglob("*")):
            kernel = file.relative_to(place).parts[0]
            other = only and (place / kernel / "cpu.cc").is_file() and kernel not in only
            if file.suffix in SOURCES and not other:
                parts += [file.relative_to(place).as_posix(), file.read_text()]
    return _digest(parts)


def _build(root: Path, work: Path, settings: Sequence[str]) -> None:
    print(f"edge: building the kernels in {work} (minutes at most)", file=sys.stderr)
    work.mkdir(parents=True, exist_ok=True)
    cmake = _tool("cmake")
    ninja = _tool("ninja")
    generator = ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"] if ninja else []
    jobs = os.environ.get("CMAKE_BUILD_PARALLEL_LEVEL") or str(len(os.sched_getaffinity(0)))
    for command in (
        [cmake, "-S", root, "-B", work, *generator, *settings],
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


def _digest(parts: Sequence[str]) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


@contextlib.contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """One process at a time."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
