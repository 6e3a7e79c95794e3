"""Writing: an artifact is there whole or not at all, whatever happens meanwhile."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from handmade import MANIFEST, fill_folder, write_artifact

from sdk.artifact import Artifact, publish, staging
from sdk.errors import ArtifactError, InputError


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def build(output: Path, **options: bool) -> None:
    """Stage without publishing."""
    with staging(output, **{"overwrite": False, **options}):
        pass


def test_nothing_beside_the_artifact(tmp_path: Path) -> None:
    write_artifact(tmp_path / "new" / "model.edge")
    assert names(tmp_path / "new") == ["model.edge"]


@pytest.mark.parametrize("name", ["model", "model.onnx", "model.edge.bak", ".edge"])
def test_a_wrong_suffix(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match=r"\.edge") as caught:
        build(tmp_path / name)
    assert f"{name}.edge" in str(caught.value.fix)
    assert names(tmp_path) == []


def test_an_existing_artifact_is_refused_without_overwrite(tmp_path: Path) -> None:
    output = write_artifact(tmp_path / "model.edge").path
    before = {file: file.read_bytes() for file in output.iterdir()}
    with pytest.raises(InputError, match="exists already") as caught:
        write_artifact(output)
    assert "overwrite=True" in str(caught.value.fix)
    assert {file: file.read_bytes() for file in output.iterdir()} == before
    assert names(tmp_path) == ["model.edge"]


def test_overwrite_replaces_the_whole(tmp_path: Path) -> None:
    output = write_artifact(tmp_path / "model.edge").path
    (output / "sources.json").unlink()
    write_artifact(output, overwrite=True)
    assert (Artifact.open(output).path / "sources.json").is_file()
    assert names(tmp_path) == ["model.edge"]


@pytest.mark.parametrize("kind", ["file", "folder", "link", "dangling link"])
def test_overwrite_spares_what_is_no_artifact(tmp_path: Path, kind: str) -> None:
    output = tmp_path / "model.edge"
    if kind == "file":
        output.write_text("precious")
    elif kind == "folder":
        output.mkdir()
        (output / "precious").touch()
    elif kind == "link":
        output.symlink_to(write_artifact(tmp_path / "real.edge").path)
    else:
        output.symlink_to(tmp_path / "nowhere")
    before = names(tmp_path)
    with pytest.raises(InputError, match="exists already") as caught:
        build(output, overwrite=True)
    assert "choose another path" in str(caught.value.fix)
    assert names(tmp_path) == before


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_a_failed_build_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    def fail() -> None:
        with staging(tmp_path / "model.edge", overwrite=False) as folder:
            (folder / "half").write_text("half")
            raise error

    with pytest.raises(error):
        fail()
    assert names(tmp_path) == []


def test_the_callers_own_errors_stay_what_they_are(tmp_path: Path) -> None:
    """A metric that does not find its data is not a full disk."""
    with pytest.raises(FileNotFoundError), staging(tmp_path / "model.edge", overwrite=False):
        (tmp_path / "data" / "absent.csv").read_text()
    assert names(tmp_path) == []


def test_a_parent_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ArtifactError, match="could not be written"):
        build(tmp_path / "file" / "model.edge")


def test_a_broken_build_is_not_published(tmp_path: Path) -> None:
    def write() -> None:
        with staging(tmp_path / "model.edge", overwrite=False) as folder:
            fill_folder(folder / "artifact")
            (folder / "artifact" / "model.onnx").unlink()
            publish(folder / "artifact", MANIFEST, tmp_path / "model.edge")

    with pytest.raises(ArtifactError, match="does not list"):
        write()
    assert names(tmp_path) == []


def test_an_artifact_that_came_meanwhile_is_left_alone(tmp_path: Path) -> None:
    output = tmp_path / "model.edge"
    other = write_artifact(tmp_path / "other.edge").path
    (other / "sources.json").unlink()

    def write() -> None:
        with staging(output, overwrite=False) as folder:
            fill_folder(folder / "artifact")
            other.rename(output)
            publish(folder / "artifact", MANIFEST, output)

    with pytest.raises(ArtifactError):
        write()
    assert not (output / "sources.json").exists()
    assert names(tmp_path) == ["model.edge"]


def test_a_failed_rename_puts_the_old_artifact_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = write_artifact(tmp_path / "model.edge").path
    rename = Path.rename

    def fail(self: Path, target: Path) -> Path:
        if self.name == "artifact":
            raise OSError(errno.EIO, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(ArtifactError, match="could not be written"):
        write_artifact(output, overwrite=True)
    monkeypatch.undo()
    Artifact.open(output)
    assert names(tmp_path) == ["model.edge"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 64 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True).returncode != 0:
        pytest.skip("file systems cannot be mounted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk(small_disk: Path) -> None:
    output = small_disk / "model.edge"
    with (
        pytest.raises(ArtifactError, match="No space left") as caught,
        staging(output, overwrite=False) as folder,
    ):
        (folder / "model.onnx").write_bytes(bytes(128 << 10))
    assert "free some space" in str(caught.value.fix)
    assert names(small_disk) == []
    write_artifact(output)


def test_a_disk_that_is_full_at_the_manifest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last file to be written, when an older artifact is to be replaced."""
    output = write_artifact(tmp_path / "model.edge").path
    write = Path.write_bytes

    def fail(self: Path, data: Any) -> int:
        if self.name == "manifest.json":
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(self, data)

    monkeypatch.setattr(Path, "write_bytes", fail)
    with pytest.raises(ArtifactError, match="No space left"):
        write_artifact(output, overwrite=True)
    monkeypatch.undo()
    Artifact.open(output)
    assert names(tmp_path) == ["model.edge"]


def test_one_build_at_a_time(tmp_path: Path) -> None:
    """A second one of the same output is refused at once and harms nothing."""
    output = tmp_path / "model.edge"
    with staging(output, overwrite=False) as folder:
        fill_folder(folder / "artifact")
        with pytest.raises(ArtifactError, match=r"Another compile writes to model\.edge"):
            build(output)
        publish(folder / "artifact", MANIFEST, output)
    Artifact.open(output)
    assert names(tmp_path) == ["model.edge"]


def test_other_outputs_do_not_wait(tmp_path: Path) -> None:
    with staging(tmp_path / "a.edge", overwrite=False):
        write_artifact(tmp_path / "b.edge")


def test_threads_that_build_the_same_output(tmp_path: Path) -> None:
    output = tmp_path / "model.edge"
    start, failures = threading.Barrier(8), []

    def work() -> None:
        start.wait()
        try:
            write_artifact(output, overwrite=True)
        except (ArtifactError, InputError) as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(failures) < 8
    Artifact.open(output)
    assert names(tmp_path) == ["model.edge"]


# Builds, and stops for good where it is told to.
WRITER = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from handmade import MANIFEST, fill_folder
from sdk.artifact import publish, staging

output, stage = Path(sys.argv[2]), sys.argv[3]

def reached(name):
    if name == stage:
        print("ready", flush=True)
        time.sleep(60)

rename = Path.rename
def slow_rename(self, target):
    result = rename(self, target)
    reached("between the renames" if self == output else "renamed")
    return result
Path.rename = slow_rename

with staging(output, overwrite=True) as folder:
    reached("staged")
    fill_folder(folder / "artifact")
    (folder / "scratch").write_text("half")
    reached("filled")
    publish(folder / "artifact", MANIFEST, output, overwrite=True)
"""
STAGES = ("staged", "filled", "between the renames", "renamed")


def kill_at(stage: str, output: Path) -> None:
    """Build in another process, which is killed when it has reached `stage`."""
    command = [sys.executable, "-c", WRITER, str(Path(__file__).parent), str(output), stage]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL


@pytest.mark.parametrize("stage", STAGES)
def test_a_killed_build(tmp_path: Path, stage: str) -> None:
    """Nothing or the old artifact is at the output, and the next build cleans up."""
    output = tmp_path / "model.edge"
    write_artifact(output)
    kill_at(stage, output)
    left = names(tmp_path)
    assert left == [".model.edge.tmp", "model.edge"] or stage == "between the renames"
    with pytest.raises(InputError), staging(output, overwrite=False):
        pass  # the old artifact is back where it was
    Artifact.open(output)
    write_artifact(output, overwrite=True)
    assert names(tmp_path) == ["model.edge"]


def test_a_killed_build_of_a_new_artifact(tmp_path: Path) -> None:
    output = tmp_path / "model.edge"
    kill_at("filled", output)
    assert names(tmp_path) == [".model.edge.tmp"]
    write_artifact(output)
    assert names(tmp_path) == ["model.edge"]
