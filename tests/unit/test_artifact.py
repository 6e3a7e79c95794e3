"""Opening: whatever is not exactly what the manifest lists is refused before anything runs."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from handmade import MANIFEST as WRITTEN, SIGNATURE, reference, write_artifact

import sdk
from sdk.artifact import GOLDEN, MANIFEST, MAX_DEPTH, MAX_FILES, MAX_MANIFEST, Artifact, pack_golden
from sdk.errors import ArtifactError, CorruptArtifactError, ManifestVersionError
from sdk.manifest import Manifest as Record
from sdk.structure import from_json

FILES = ("model.onnx", "golden.safetensors", "processor.json", "sources.json", "manifest.json")


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Fail, instead of hanging, when the block takes longer."""

    def expired(_signal: int, _frame: object) -> None:
        raise TimeoutError(f"took more than {seconds} s")

    before = signal.signal(signal.SIGALRM, expired)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_artifact(tmp_path / "model.edge").path


def refused(
    path: Path, match: str | None = None, kind: type[ArtifactError] = CorruptArtifactError
) -> None:
    """Opening raises `kind`, at once."""
    with within(2), pytest.raises(kind, match=match) as caught:
        Artifact.open(path)
    assert caught.value.fix


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the manifest as JSON and, where it is still one, seal it again."""
    document = json.loads((path / MANIFEST).read_text())
    change(document)
    text = json.dumps(document).encode()
    with suppress(ArtifactError):
        text = from_json(Record, document).sealed().dumps()
    (path / MANIFEST).write_bytes(text)


def listed(path: Path, name: str, content: bytes) -> None:
    """Write a file and list it with its true size and hash."""
    entry = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (path / name).parent.mkdir(parents=True, exist_ok=True)
    (path / name).write_bytes(content)
    edit(path, lambda document: document["files"].update({name: entry}))


def test_what_was_written_is_read(path: Path) -> None:
    artifact = Artifact.open(path)
    assert set(artifact.manifest.files) == {*FILES} - {MANIFEST}
    assert artifact.size == sum((path / name).stat().st_size for name in artifact.manifest.files)
    ((inputs, outputs),) = artifact.golden()
    np.testing.assert_allclose(outputs["y"], reference(inputs["x"]), rtol=1e-6)
    assert artifact.read("absent") is None
    assert artifact.read("processor.json") == (path / "processor.json").read_bytes()


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_bit_anywhere(path: Path, name: str) -> None:
    """Spread over the file: the first byte, the last one and some between."""
    good = (path / name).read_bytes()
    whole = Artifact.open(path).manifest
    for place in {0, len(good) - 1, *range(0, len(good), max(1, len(good) // 40))}:
        bad = bytearray(good)
        bad[place] ^= 1 << place % 8
        (path / name).write_bytes(bad)
        try:
            opened = Artifact.open(path)
        except ArtifactError:
            continue
        # one blank for another between the manifest's values
        assert name == MANIFEST
        assert opened.manifest == whole


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file(path: Path, name: str) -> None:
    (path / name).unlink()
    refused(path, f"{name!r} is missing")


@pytest.mark.parametrize("name", FILES)
def test_a_truncated_file(path: Path, name: str) -> None:
    (path / name).write_bytes((path / name).read_bytes()[:-1])
    refused(path)


@pytest.mark.parametrize(
    "name", ["extra", ".hidden", "deep/er/extra.bin", "model.onnx.data", "a\udcff"]
)
def test_an_unlisted_file(path: Path, name: str) -> None:
    (path / name).parent.mkdir(parents=True, exist_ok=True)
    (path / name).write_bytes(b"")
    with within(2), pytest.raises(CorruptArtifactError, match="does not list") as caught:
        Artifact.open(path)
    str(caught.value).encode()  # the message can be printed


@pytest.mark.parametrize(
    "name",
    ["../secret", "a/../../secret", "..", ".", "./model.onnx", "/etc/hostname", "a//b", "a/", "",
     "~/x", "C:\\x", "..\\secret", "a\nb", "a b", "-rf", "manifest.json/x", "x" * 129, "\u202eexe"],
)  # fmt: skip
def test_an_unsafe_path(path: Path, name: str) -> None:
    (path.parent / "secret").write_bytes(b"")
    entry = {"bytes": 0, "sha256": hashlib.sha256(b"").hexdigest()}
    edit(path, lambda document: document["files"].update({name: entry}))
    refused(path)


def test_a_function_outside_of_the_list(path: Path) -> None:
    (path.parent / "model.onnx").write_bytes(b"")
    for name in ("../model.onnx", "manifest.json", "/etc/hostname"):
        edit(path, lambda document, name=name: document["functions"]["main"].update(file=name))
        refused(path, "does not list")


@pytest.mark.parametrize("name", FILES)
def test_a_link_instead_of_a_file(path: Path, name: str) -> None:
    """Even to an equal file."""
    (path / name).rename(path.parent / "elsewhere")
    (path / name).symlink_to(path.parent / "elsewhere")
    refused(path, "link or not a plain file")


def test_a_link_to_a_folder_is_not_entered(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outside = path.parent / "outside"
    outside.mkdir()
    listed(path, "sub/file.bin", b"hello")
    (path / "sub").rename(outside / "sub")
    (path / "sub").symlink_to(outside / "sub")
    read: list[Path] = []
    monkeypatch.setattr("sdk.artifact._digest", lambda path: read.append(path) or "")
    refused(path, "link or not a plain file")
    assert not read


def test_a_listed_sub_folder_is_fine(path: Path) -> None:
    listed(path, "sub/file.bin", b"hello")
    assert Artifact.open(path).read("sub/file.bin") == b"hello"


def test_a_link_to_the_artifact(path: Path) -> None:
    link = path.with_name("link.edge")
    link.symlink_to(path)
    refused(link, "is not an artifact")


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("kind", ["pipe", "socket", "device", "folder"])
def test_what_is_no_file_never_hangs(path: Path, name: str, kind: str) -> None:
    (path / name).unlink()
    if kind == "pipe":
        os.mkfifo(path / name)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path / name))
    elif kind == "device":
        if os.geteuid() != 0:
            pytest.skip("only root makes device files")
        os.mknod(path / name, 0o600 | 0o020000, os.makedev(1, 5))  # /dev/zero
    else:
        (path / name).mkdir()
    refused(path)


def test_an_unlisted_pipe(path: Path) -> None:
    os.mkfifo(path / "pipe")
    refused(path, "link or not a plain file")


def test_a_folder_that_cannot_be_read(path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root reads everything")
    (path / "sub").mkdir(mode=0)
    refused(path, "cannot be read")


def test_a_huge_manifest_is_not_read(path: Path) -> None:
    with (path / MANIFEST).open("r+b") as file:
        file.truncate(100 << 20)
    with within(0.5), pytest.raises(CorruptArtifactError, match=f"{MANIFEST} is too large"):
        Artifact.open(path)


def test_a_manifest_at_the_bound_is_read(path: Path) -> None:
    text = (path / MANIFEST).read_bytes()
    (path / MANIFEST).write_bytes(text.ljust(MAX_MANIFEST))
    Artifact.open(path)


def test_a_huge_file_is_not_hashed(path: Path) -> None:
    with (path / "model.onnx").open("r+b") as file:
        file.truncate(1 << 40)  # sparse
    with within(0.5), pytest.raises(CorruptArtifactError, match=r"'model\.onnx' was changed"):
        Artifact.open(path)


@pytest.mark.parametrize("name", ["processor.json", GOLDEN])
def test_a_huge_listed_file_is_not_read_into_memory(
    path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sdk.artifact.MAX_GOLDEN", 100)
    artifact = Artifact.open(path)
    with pytest.raises(CorruptArtifactError, match="too large"):
        artifact.read(name, 10) if name != GOLDEN else artifact.golden()


def test_a_file_that_vanishes_after_opening(path: Path) -> None:
    artifact = Artifact.open(path)
    (path / "processor.json").unlink()
    with pytest.raises(CorruptArtifactError):
        artifact.read("processor.json")


def test_too_many_files(path: Path) -> None:
    for index in range(MAX_FILES + 1):
        (path / f"{index}").touch()
    refused(path, "too many")


def test_too_many_folders(path: Path) -> None:
    for index in range(MAX_FILES + 1):
        (path / f"{index}").mkdir()
    refused(path, "too many")


def test_too_deep(path: Path) -> None:
    (path / "/".join("d" * (MAX_DEPTH + 2))).mkdir(parents=True)
    refused(path, "too many")


@pytest.mark.parametrize("kind", ["nothing", "file", "empty folder", "long name", "zero byte"])
def test_what_is_no_artifact(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x.edge"
    if kind == "file":
        path.write_bytes(b"")
    elif kind == "empty folder":
        path.mkdir()
    elif kind == "long name":
        path = tmp_path / ("x" * 5000)
    elif kind == "zero byte":
        path = Path(f"{path}\0")
    refused(path)


@pytest.mark.parametrize(("version", "fix"), [(2, "upgrade edge-sdk"), (10**6, "upgrade edge-sdk"),
                                              (0, "compile"), (-1, "compile")])  # fmt: skip
def test_another_format_version(path: Path, version: int, fix: str) -> None:
    """Said even when nothing else of the manifest is known."""
    (path / MANIFEST).write_text(json.dumps({"format_version": version, "future": {"x": [1]}}))
    with pytest.raises(ManifestVersionError) as caught:
        Artifact.open(path)
    assert fix in str(caught.value.fix)
    assert caught.value.got == version


@pytest.mark.parametrize("version", ["1", 1.0, True, None, [], {}])
def test_a_version_of_another_type(path: Path, version: object) -> None:
    edit(path, lambda document: document.update(format_version=version))
    refused(path)


@pytest.mark.parametrize(
    "text", ["null", "[]", "1", '"x"', "{}", "", "\x00", "[" * 10**5, '{"format_version": NaN}',
             "9" * 10**4])  # fmt: skip
def test_a_manifest_that_is_none(path: Path, text: str) -> None:
    (path / MANIFEST).write_text(text)
    refused(path)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda d: d.update(target="openvno:cpu"), "openvno"),
        (lambda d: d.update(requested=":"), "does not parse"),
        (lambda d: d.update(candidates=[]), "exactly one kept"),
        (lambda d: d.update(candidates=d["candidates"] * 2), "exactly one kept"),
        (lambda d: d.update(functions={}), "no function 'main' or 'step'"),
        (lambda d: d.update(files={}), "does not list"),
        (lambda d: d["files"]["model.onnx"].update(sha256="0" * 64), "was changed"),
        (lambda d: d["files"]["model.onnx"].update(bytes=-1), "was changed"),
        (lambda d: d["functions"]["main"]["signature"]["inputs"][0].update(dtype="x"), "dtype"),
        (lambda d: d["functions"]["main"]["signature"]["inputs"][0].update(shape=[-1]), "sizes"),
        (lambda d: d["functions"]["main"]["signature"]["inputs"].append(
            d["functions"]["main"]["signature"]["inputs"][0]), "share a name"),
    ],
)  # fmt: skip
def test_a_manifest_without_sense(path: Path, change: Any, match: str) -> None:
    edit(path, change)
    refused(path, match)


BF16 = b'{"0/input/x":{"dtype":"BF16","shape":[1],"data_offsets":[0,2]}}'


@pytest.mark.parametrize(
    "golden",
    [
        b"",
        b"\x00" * 8,
        b"\xff" * 64,
        b"\x02\x00\x00\x00\x00\x00\x00\x00{}",
        len(BF16).to_bytes(8, "little") + BF16 + b"\x00\x00",
    ],
    ids=["empty", "no header", "huge header", "no tensors", "a dtype that NumPy lacks"],
)
def test_golden_values_that_are_none(path: Path, golden: bytes) -> None:
    listed(path, GOLDEN, golden)
    with pytest.raises(CorruptArtifactError):
        Artifact.open(path).golden()


def test_a_manifest_that_was_edited(path: Path) -> None:
    text = (path / MANIFEST).read_text()
    (path / MANIFEST).write_text(text.replace('"threads": 1', '"threads": 2'))
    refused(path, "was changed")


X = np.zeros((1, 3, 4, 4), np.float32)
Y = np.zeros((1, 2), np.float32)


@pytest.mark.parametrize(
    "pair", [({"x": X}, {}), ({}, {"y": Y}), ({"x": X}, {"z": Y}), ({"x": X, "z": X}, {"y": Y})]
)
def test_golden_values_of_another_signature(path: Path, pair: Any) -> None:
    """Golden values without outputs would pass every check."""
    listed(path, GOLDEN, pack_golden([pair]))
    with pytest.raises(CorruptArtifactError, match="of the signature"):
        Artifact.open(path).golden()


def test_golden_values_of_a_wrong_shape_fail_the_check(path: Path) -> None:
    listed(path, GOLDEN, pack_golden([({"x": X[:, :1]}, {"y": Y})]))
    with pytest.raises(sdk.EdgeError):
        sdk.verify(path, threads=1)


def test_verify_compares_with_the_golden_values(path: Path) -> None:
    assert sdk.verify(path, threads=1).ok
    listed(path, GOLDEN, pack_golden([({"x": X}, {"y": Y + 1})]))
    assert not sdk.verify(path, threads=1).ok


def test_the_record_is_the_one_written(path: Path) -> None:
    manifest = Artifact.open(path).manifest
    assert manifest.functions["main"].signature == SIGNATURE
    assert manifest.candidates == WRITTEN.candidates
    assert manifest.kept.target == "onnxruntime:cpu:fp32"
