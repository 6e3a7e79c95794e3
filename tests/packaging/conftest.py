"""A wheel of this checkout, and a clean environment that has it with one engine and no torch."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Environment:
    """A virtual environment, and a folder outside the repository to run in."""

    bin: Path
    folder: Path

    def run(self, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command of the environment, with nothing else of this process's Python in reach."""
        return subprocess.run(
            [str(self.bin / command[0]), *command[1:]],
            cwd=self.folder,
            env={"PATH": f"{self.bin}{os.pathsep}{os.environ['PATH']}", "HOME": str(self.folder)},
            capture_output=True,
            text=True,
            check=check,
            timeout=120,
        )

    def python(self, code: str) -> str:
        """What `code` prints; CalledProcessError where it fails."""
        return self.run("python", "-c", code).stdout.strip()


def pip(python: str | Path, *arguments: str | Path, **environment: str) -> None:
    command = [str(python), "-m", "pip", *map(str, arguments), "--quiet"]
    subprocess.run(command, check=True, timeout=1200, env={**os.environ, **environment})


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    pip(sys.executable, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, ROOT)
    (file,) = folder.glob("*.whl")
    return file


@pytest.fixture(scope="session")
def pure_wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As it is made where the compiler does not work."""
    folder = tmp_path_factory.mktemp("pure")
    options = ("--no-deps", "--no-build-isolation", "--wheel-dir", folder)
    pip(sys.executable, "wheel", *options, ROOT, CXX="/bin/false", CC="/bin/false")
    (file,) = folder.glob("*.whl")
    return file


@pytest.fixture(scope="session")
def device(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """What a device has: NumPy, ONNX Runtime, safetensors and the wheel."""
    root = tmp_path_factory.mktemp("device")
    venv.create(root / "venv", with_pip=True, symlinks=True)
    environment = Environment(root / "venv" / "bin", root)
    pip(
        environment.bin / "python",
        "install",
        "--constraint",
        ROOT / "constraints.txt",
        f"edge-sdk[onnxruntime] @ {wheel.as_uri()}",
    )
    return environment
