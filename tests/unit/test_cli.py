"""The verbs: exit codes, what stands on stdout and on stderr, and that errors teach."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import sdk
from sdk import errors
from sdk.cli import EXIT, exit_code, main
from sdk.processor import ImageProcessor, Processor

SOURCE = """
import torch

print("the user's module prints this")

def net():
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 16, 3, padding=1), torch.nn.ReLU(),
        torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(16, 2),
    )
"""
SHAPE = ("--shape", "input=1x3x8x8")
Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, its data and one artifact of it."""
    folder = tmp_path_factory.mktemp("cli")
    (folder / "cli_home.py").write_text(SOURCE)
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (12, 10, 10, 3), dtype=np.uint8)
    (folder / "images").mkdir()
    for index, picture in enumerate(pictures):
        Image.fromarray(picture).save(folder / "images" / f"{index:02}.png")
    processor = Processor("input", ImageProcessor(size=(8, 8)))
    (folder / "processor.json").write_text(json.dumps(processor.to_json()))
    (folder / "labels.txt").write_text("cat\ndog\n")
    np.save(folder / "x.npy", rng.random((1, 3, 8, 8), dtype=np.float32))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        code = main(
            ["compile", "cli_home:net", "--calibration", "images", "--processor", "processor.json",
             "--labels", "labels.txt", "-t", "torch", "-o", "net.edge", "--threads", "1"]
        )  # fmt: skip
    assert code == 0
    return folder


@pytest.fixture(autouse=True)
def here(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home)


def document(capture: Capture) -> Any:
    """Stdout as one JSON document: anything else there fails."""
    return json.loads(capture.readouterr().out)


def edge(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own, as a user runs it."""
    code = "import sys; from sdk.cli import main; sys.exit(main())"
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=120
    )


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        (errors.ParityError, 1),
        (errors.ArtifactError, 1),
        (errors.CorruptArtifactError, 1),
        (errors.KernelMissingError, 1),
        (errors.EngineError, 1),
        (errors.InputError, 2),
        (errors.EngineUnavailableError, 2),
        (errors.CaptureError, 2),
        (errors.UnsupportedOperatorError, 2),
        (errors.QuantizationError, 2),
    ],
)
def test_each_error_has_its_exit_code(kind: type[errors.EdgeError], code: int) -> None:
    assert exit_code(kind("what")) == code


def test_help_says_the_exit_codes_and_each_verb_has_an_example(capfd: Capture) -> None:
    assert main(["--help"]) == 0
    text = " ".join(capfd.readouterr().out.split())
    for kind, code in EXIT:
        assert kind.__name__ in text[text.index(f"{code}, ") :]
    verbs = ["doctor", "compile", "verify", "inspect", "predict", "generate", "profile", "demo"]
    for words in [*([verb] for verb in verbs), *(["recipe", v] for v in ("list", "show", "run"))]:
        assert main([*words, "--help"]) == 0
        assert f"$ edge {' '.join(words)}" in capfd.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [["compil"], ["verify"], ["verify", "net.edge", "--colour"], ["profile", "x", "--runs", "0"]],
)
def test_a_misspelt_command_line_is_exit_code_2(arguments: list[str], capfd: Capture) -> None:
    assert main(arguments) == 2
    assert capfd.readouterr().out == ""
    assert main([*arguments, "--json"]) == 2
    assert document(capfd)["error"]["type"] == "UsageError"


def test_doctor_lists_every_engine(capfd: Capture) -> None:
    assert main(["doctor", "--json"]) == 0
    found = document(capfd)
    assert list(found["engines"]) == list(sdk.engines())
    assert found["engines"]["torch"]["devices"]["cpu"]["run"] is True
    assert found["machine"]["python"] == platform.python_version()
    assert main(["doctor"]) == 0
    assert "Usable here: " in capfd.readouterr().out


def test_doctor_fails_where_no_engine_runs(monkeypatch: pytest.MonkeyPatch, capfd: Capture) -> None:
    missing = sdk.Availability(reason="not installed", fix="pip install it")
    monkeypatch.setattr(sdk, "engines", lambda: {"torch": missing})
    assert main(["doctor"]) == 1
    out = capfd.readouterr().out
    assert "pip install it" in out
    assert "No engine can run here." in out


def test_compile_json_is_alone_on_stdout_though_the_model_prints() -> None:
    done = edge("compile", "cli_home:net", *SHAPE, "-t", "torch", "-o", "json.edge",
                "--threads", "1", "--json")  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["target"] == "torch:cpu:fp32"
    assert [row["kept"] for row in found["candidates"]] == [True]
    assert "the user's module prints this" in done.stderr
    assert "random inputs" in done.stderr
    assert "random" in sdk.Artifact.open("json.edge").manifest.provenance["inputs"]
    assert "... capture" in done.stderr


def test_compile_takes_int8_calibration_and_dynamic_sizes(capfd: Capture) -> None:
    code = main(
        ["compile", "cli_home:net", "--calibration", "images", "--processor", "processor.json",
         "--dynamic", "input:0=batch:1:1:5", "--waive", "slower", "--waive", "fidelity",
         "-t", "torch:cpu:int8", "-o", "int8.edge", "--threads", "1", "--json"]
    )  # fmt: skip
    captured = capfd.readouterr()
    assert code == 0, captured.err
    assert "2 batches of 5 rows; 2 at the end do not fill one" in captured.err
    found = json.loads(captured.out)
    assert {row["precision"] for row in found["candidates"]} == {"fp32", "int8"}
    assert found["waivers"] == ["slower", "fidelity"]
    (spec,) = sdk.Artifact.open("int8.edge").manifest.functions["main"].signature.inputs
    assert spec.shape[0] == sdk.Dim("batch", 1, 1, 5)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ((*SHAPE, "-t", "torhc", "-o", "a.edge"), "did you mean 'torch'?"),
        ((*SHAPE, "-t", "torch", "-o", "a.onnx"), ".edge"),
        ((*SHAPE, "-t", "torch", "-o", "net.edge"), "--overwrite"),
        ((*SHAPE, "-t", "torch:cpu:int8", "-o", "a.edge"), "calibration"),
        ((*SHAPE, "-t", "torch:npu", "-o", "a.edge"), "has no device 'npu'"),
        (("-t", "torch", "-o", "a.edge"), "--shape name=1x3x224x224"),
        ((*SHAPE, "--inputs", "x.npy", "-t", "torch", "-o", "a.edge"), "exclude each other"),
        (("--inputs", "no.npy", "-t", "torch", "-o", "a.edge"), "There is no file no.npy"),
        ((*SHAPE, "--waive", "all", "-t", "torch", "-o", "a.edge"), "waiver 'all'"),
        ((*SHAPE, "--processor", "no.json", "-t", "torch", "-o", "a.edge"), "no.json"),
    ],
)
def test_compile_used_wrongly_teaches_without_a_traceback(
    changes: tuple[str, ...], words: str, home: Path, capfd: Capture
) -> None:
    before = sorted(home.iterdir())
    assert main(["compile", "cli_home:net", *changes]) == 2
    captured = capfd.readouterr()
    assert "error: " in captured.err
    assert words in captured.err
    assert "Traceback" not in captured.err
    assert sorted(home.iterdir()) == before


def test_debug_shows_the_traceback_wherever_it_stands() -> None:
    for arguments in (["--debug", "verify", "no.edge"], ["verify", "no.edge", "--debug"]):
        assert "Traceback" in edge(*arguments).stderr
    quiet = edge("verify", "no.edge")
    assert quiet.returncode == 1
    assert "Traceback" not in quiet.stderr
    assert "got: nothing there" in quiet.stderr


def test_verify_holds_and_then_does_not(home: Path, capfd: Capture) -> None:
    assert main(["verify", "net.edge", "--json", "--threads", "1"]) == 0
    found = document(capfd)
    assert found["holds"] is True
    assert found["outputs"][0]["rms"] <= found["tolerance"]["rms"]

    copy = home / "flipped.edge"
    copy.mkdir()
    for file in (home / "net.edge").iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    weights = copy / "weights.safetensors"
    flipped = bytearray(weights.read_bytes())
    flipped[-1] ^= 1
    weights.write_bytes(flipped)
    assert main(["verify", "flipped.edge", "--json"]) == 1
    failed = document(capfd)
    assert failed["error"]["type"] == "CorruptArtifactError"
    assert failed["exit_code"] == 1


def test_verify_out_of_bounds_is_exit_code_1(
    monkeypatch: pytest.MonkeyPatch, capfd: Capture
) -> None:
    from sdk.parity import TOLERANCE, compare

    want = {"output": np.arange(4.0)}
    report = compare({"output": want["output"] + 1}, want, TOLERANCE["fp32"])
    monkeypatch.setattr(sdk, "verify", lambda *_, **__: report)
    assert main(["verify", "net.edge"]) == 1
    assert "It does not hold" in capfd.readouterr().out


def test_inspect_tells_the_manifest(capfd: Capture) -> None:
    assert main(["inspect", "net.edge", "--json"]) == 0
    found = document(capfd)
    assert found["manifest"]["target"] == "torch:cpu:fp32"
    assert found["processor"]["post"]["labels"] == ["cat", "dog"]
    assert main(["inspect", "net.edge"]) == 0
    out = capfd.readouterr().out
    for text in ("float32[1, 3, 8, 8]", "weights.safetensors", "program_sha256", "torch"):
        assert text in out


def test_predict_prints_labels_and_writes_them(home: Path, capfd: Capture) -> None:
    images = ["images/00.png", "images/01.png"]
    assert main(["predict", "net.edge", *images, "--output", "labels.npz", "--json"]) == 0
    results = document(capfd)["results"]
    assert [row["input"] for row in results] == images
    for index, row in enumerate(results):
        assert {label["name"] for label in row["labels"]} == {"cat", "dog"}
        assert sum(label["probability"] for label in row["labels"]) == pytest.approx(1)
        with np.load(home / "labels.npz") as saved:
            assert saved[f"{index}/label"][0] == row["labels"][0]["name"]


def test_predict_on_arrays_is_the_model_s_output(home: Path, capfd: Capture) -> None:
    x = np.load(home / "x.npy")
    with sdk.load("net.edge") as model:
        want = model.predict(x)
    assert main(["predict", "net.edge", "x.npy", "--output", "y.npz", "--json"]) == 0
    (row,) = document(capfd)["results"]
    assert np.allclose(row["outputs"]["output"]["values"], want)
    with np.load(home / "y.npz") as saved:
        assert np.allclose(saved["output"], want)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["images/no.png"], "There is no image file"),
        (["cli_home.py"], "cannot be decoded"),
        (["x.npy", "--output", "y.txt"], "not an .npz file"),
        (["x.npy", "--output", "no/y.npz"], "no/y.npz"),
        (["x.npy", "--device", "tpu"], "device in"),
        (["x.npy", "--device", "npu", "--fallback", "forbid"], "has no device 'npu'"),
    ],
)
def test_predict_used_wrongly(arguments: list[str], words: str, capfd: Capture) -> None:
    assert main(["predict", "net.edge", *arguments]) == 2
    captured = capfd.readouterr()
    assert words in captured.err
    assert "Traceback" not in captured.err


def test_a_fallback_is_told_on_stderr(capfd: Capture) -> None:
    assert main(["predict", "net.edge", "x.npy", "--device", "npu", "--json"]) == 0
    captured = capfd.readouterr()
    assert "warning: torch:cpu:fp32: npu is not there" in captured.err
    assert json.loads(captured.out)["target"] == "torch:cpu:fp32"


def test_without_typer_the_command_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capfd: Capture
) -> None:
    monkeypatch.setattr("sdk.cli.installed", lambda package: package != "typer")
    assert main(["doctor"]) == 2
    captured = capfd.readouterr()
    assert captured.out == ""
    assert "pip install 'edge-sdk[cli]'" in captured.err


def test_help_loads_neither_torch_nor_an_engine() -> None:
    code = (
        "import sys; from sdk.cli import main; main(['--help']); heavy = {'torch', 'onnxruntime', "
        "'openvino', 'PIL'} & set(sys.modules); sys.exit(str(heavy) if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_shell_completion_knows_the_verbs(monkeypatch: pytest.MonkeyPatch, capfd: Capture) -> None:
    monkeypatch.setenv("_EDGE_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", "edge ver")
    monkeypatch.setenv("COMP_CWORD", "1")
    assert main([]) == 0
    assert "verify" in capfd.readouterr().out


def test_a_log_gets_a_line_for_a_stage_and_not_for_each_step(
    monkeypatch: pytest.MonkeyPatch, capfd: Capture
) -> None:
    from sdk.cli import output

    monkeypatch.setattr(output, "LOG_SECONDS", 1e9)
    report = output.stages()
    assert report is not None
    for step, loss in enumerate((2.5, 2.25, 1.0)):
        report(f"train: loss {loss}", step, 4)
    monkeypatch.setattr(output, "LOG_SECONDS", -1.0)
    report("train: loss 0.5", 3, 4)
    report("package", 0, 1)
    assert capfd.readouterr().err.splitlines() == [
        "... train: loss 2.5 (0/4)",
        "... train: loss 0.5 (3/4)",
        "... package",
    ]


def test_demo_shows_every_build_the_accuracies_and_where_the_report_is(
    home: Path, monkeypatch: pytest.MonkeyPatch, capfd: Capture
) -> None:
    from sdk.recipes.base import Student

    artifact = sdk.Artifact.open("net.edge")
    report = {
        "teacher": {"after": {"accuracy": 0.75}},
        "students": {"ssld": {"mean": 0.5}},
        "images": {"test": 4},
        "refused": {"torch:cpu:int8": "too far from the reference"},
    }
    asked: dict[str, Any] = {}

    class Short:
        def run(self, output: Path, **options: Any) -> Student:
            asked.update(output=output, **options)
            output.parent.mkdir()
            made = {"torch:cpu:fp32": artifact}
            return Student(None, artifact, made, report, Path("net.run"))  # type: ignore[arg-type]

    monkeypatch.setattr(sdk, "recipe", lambda *_, **__: Short())
    assert main(["demo", "-o", "demo", "--no-resume"]) == 0
    assert (asked["output"], asked["resume"], asked["overwrite"]) == (
        Path("demo/student.edge"),
        False,
        True,
    )
    captured = capfd.readouterr()
    assert "top-1 on 4 test images: teacher 75.0%, ssld 50.0%" in captured.out
    assert "asked for" in captured.out
    assert "torch:cpu:int8 was refused" in captured.err
    assert [line[:3] for line in captured.err.splitlines() if line[1:2] == "/"] == [
        "1/3",
        "2/3",
        "3/3",
    ]
    assert (home / "demo/profile.html").stat().st_size > 1000


def test_profile_writes_a_report_and_a_trace(home: Path, capfd: Capture) -> None:
    arguments = ["profile", "net.edge", "--runs", "5", "-o", "p.html", "--trace", "t.json"]
    assert main([*arguments, "--json"]) == 0
    found = document(capfd)
    assert found["target"] == "torch:cpu:fp32"
    assert found["p50_us"] > 0
    assert json.loads((home / "t.json").read_text())["traceEvents"]
    assert main(arguments) == 0
    out = capfd.readouterr().out
    for text in ("latency, p50 / p90 / p99", "slowest operators", "conv", "wall"):
        assert text in out.lower()
    assert main(["profile", "net.edge", "--runs", "5", "-o", "p.pdf"]) == 2
    assert ".html" in capfd.readouterr().err
