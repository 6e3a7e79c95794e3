"""A real compile that is killed, or whose disk is full, leaves no half artifact."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

import sdk
from sdk.errors import ArtifactError

# Compiles in another process, and stops for good in the stage that it is told.
COMPILE = """
import sys, time
import torch, sdk

torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4)).eval()

def progress(what, done, total):
    if what.startswith(sys.argv[2]):
        print("ready", flush=True)
        time.sleep(60)

sdk.compile(model, inputs=torch.ones(1, 8), target="torch", output=sys.argv[1], threads=1,
            overwrite=True, progress=progress)
"""


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)).eval()


def compile_to(output: Path, *, model: nn.Module | None = None) -> sdk.Artifact:
    return sdk.compile(
        model or network(),
        inputs=torch.ones(1, 8),
        target="torch",
        output=output,
        threads=1,
        overwrite=True,
        progress=lambda _what, _done, _total: None,
    )


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["capture", "lower", "verify", "time", "package"])
def test_a_killed_compile(stage: str, tmp_path: Path) -> None:
    output = tmp_path / "model.edge"
    command = [sys.executable, "-c", COMPILE, str(output), stage]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    assert names(tmp_path) == [".model.edge.tmp"]
    compile_to(output)
    assert names(tmp_path) == ["model.edge"]
    assert sdk.verify(output, threads=1).ok


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 256 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True).returncode != 0:
        pytest.skip("file systems cannot be mounted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_compile_on_a_full_disk(small_disk: Path) -> None:
    output = small_disk / "model.edge"
    large = nn.Sequential(nn.Linear(8, 20_000), nn.Linear(20_000, 4)).eval()
    with pytest.raises(ArtifactError, match="No space left on device"):
        compile_to(output, model=large)
    assert names(small_disk) == []
    compile_to(output)
    with pytest.raises(ArtifactError, match="No space left on device"):
        compile_to(output, model=large)
    assert names(small_disk) == ["model.edge"]
    assert sdk.verify(output, threads=1).ok
