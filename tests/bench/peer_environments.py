"""The peers: what is installed for each, in its own environment, and how its driver is run."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

DRIVERS = Path(__file__).with_name("peers")
# The engines are those of this environment, so that compilers are compared and not engines.
ENGINES = tuple(f"{name}=={version(name)}" for name in ("onnxruntime", "onnx", "numpy"))
OPENVINO = f"openvino=={version('openvino')}"
TORCH = f"torch=={version('torch').partition('+')[0]}"
REQUIREMENTS = {
    "olive": ("olive-ai==0.13.0", "requests"),
    "optimum": (
        "optimum-onnx[onnxruntime]==0.1.0", "transformers==4.57.6", "huggingface_hub<1", "datasets",
    ),
    "nncf": ("nncf==3.4.0", OPENVINO),
    "openvino_genai": (
        TORCH, "openvino-genai==2026.4.1", "optimum-intel==2.2.0", "transformers==5.5.4",
        "nncf==3.4.0", OPENVINO,
    ),
    "onnxruntime_genai": ("onnxruntime-genai==0.18.0", "transformers==5.24.0", "onnx-ir==1.1.0"),
}  # fmt: skip
UNWANTED = ("torchvision",)
OFFLINE = {"HF_HUB_OFFLINE": "1", "OLIVE_DISABLE_TELEMETRY": "1", "OMP_NUM_THREADS": "1"}


class PeerError(Exception):
    """A peer that could not be installed or did not quantize the model, and its last words."""


@dataclass(frozen=True)
class Peer:
    """One compiler with its defaults."""

    name: str
    environment: str
    driver: str
    suffix: str
    engines: tuple[str, ...]

    def quantize(
        self, environments: Path, model: Path, calibration: Path, name: str, folder: Path
    ) -> Path:
        """Run it on the fp32 ONNX `model`, whose input is `name`; a file already made is kept."""
        file = folder / f"{self.driver}{self.suffix}"
        if not file.is_file():
            python = environment(environments, self.environment)
            driver = DRIVERS / f"{self.driver}.py"
            options = {"model": model, "calibration": calibration, "input": name, "output": file}
            flags = [word for key, value in options.items() for word in (f"--{key}", str(value))]
            _call([str(python), str(driver), *flags])
        return file


PEERS = (
    Peer("olive", "olive", "olive_static", ".onnx", ("onnxruntime",)),
    Peer("optimum", "optimum", "optimum_static", ".onnx", ("onnxruntime",)),
    Peer("onnxruntime", "optimum", "onnxruntime_static", ".onnx", ("onnxruntime",)),
    Peer("nncf", "nncf", "nncf_openvino", ".xml", ("openvino",)),
    Peer("nncf (onnx)", "nncf", "nncf_onnx", ".onnx", ("onnxruntime", "openvino")),
)


def environment(folder: Path, name: str) -> Path:
    """The Python of the environment `name`, made and filled if it is not there yet."""
    python = folder / name / "bin" / "python"
    marker = folder / name / "installed.txt"
    # torch first: its CPU build must not be replaced by one that pulls CUDA.
    steps = ([TORCH], [*REQUIREMENTS[name], *ENGINES])
    wanted = "\n".join(step for part in steps for step in part)
    if not (marker.is_file() and marker.read_text() == wanted):
        print(f"installing {name} into {python.parents[1]}", file=sys.stderr)
        _call([sys.executable, "-m", "venv", "--clear", str(folder / name)])
        for step in steps:
            _call([str(python), "-m", "pip", "install", "--quiet", *step])
        for package in UNWANTED:  # one that was built for another torch breaks transformers
            _call([str(python), "-m", "pip", "uninstall", "--quiet", "--yes", package])
        marker.write_text(wanted)
    return python


def _call(command: list[str]) -> None:
    done = subprocess.run(
        command, env=os.environ | OFFLINE, capture_output=True, text=True, check=False
    )
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines()
        raise PeerError(f"{' '.join(command[:4])} failed: {lines[-1] if lines else 'no output'}")
