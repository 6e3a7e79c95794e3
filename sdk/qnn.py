"""Qualcomm's QNN execution provider for ONNX Runtime: its devices, its chips, its options.

Used on both sides: to build context binaries, and to run. On x86-64 Linux its library brings a
simulator of the NPU (the Hexagon Tensor Processor, HTP): same figures, other times.
"""

from __future__ import annotations

import contextlib
import ctypes
import difflib
import functools
import os
import platform
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdk.errors import EngineUnavailableError, InputError
from sdk.extras import installed, require

PROVIDER = "QNNExecutionProvider"
PACKAGE = "onnxruntime_qnn"
PRECISIONS = ("int8", "a16w8", "fp16")  # float runs as fp16 whatever the file says
OPERATORS = "model.qnn.json"  # beside a context binary: what it is made of
SOC_FILE = Path("/sys/devices/soc0/machine")  # the chip's name, on Linux and Android


@dataclass(frozen=True, slots=True)
class Soc:
    """A chip: its number in the QNN SDK and the architecture of its HTP."""

    name: str
    model: int
    htp: int


@dataclass(frozen=True, slots=True)
class Operator:
    """An operator of a context binary, and the nodes of the ONNX file that it came of."""

    name: str
    kind: str
    nodes: tuple[str, ...]


# From two tables that Qualcomm Innovation Center keeps in public repositories: pytorch/executorch,
# backends/qualcomm (qc_compiler_spec.fbs, utils.py), and google-ai-edge/LiteRT,
# litert/vendors/qualcomm/core/schema/soc_table. Where a chip is in both, they agree. QNN itself
# refuses a number that it does not know.
SOCS = {
    soc.name: soc
    for soc in (
        Soc("SM8350", 30, 68),
        Soc("SM8450", 36, 69),
        Soc("SA8295", 39, 68),
        Soc("SM8475", 42, 69),
        Soc("SM8550", 43, 73),
        Soc("SXR1230P", 45, 73),
        Soc("SSG2115P", 46, 73),
        Soc("SA8255", 52, 73),
        Soc("SXR2230P", 53, 69),
        Soc("SM8650", 57, 75),
        Soc("SSG2125P", 58, 73),
        Soc("SC8380XP", 60, 73),
        Soc("SM8750", 69, 79),
        Soc("SXR2330P", 75, 79),
        Soc("QCS9100", 77, 73),
        Soc("SM8850", 87, 81),
        Soc("SAR2230P", 95, 81),
    )
}
SIMULATED = SOCS["SM8750"]  # where no chip is named; the library's own default, v68, has no fp16


def soc_of(arch: str) -> Soc:
    """The chip of a target's fourth part, `SM8650` or `sm8650`; InputError lists the known."""
    soc = SOCS.get(arch.upper())
    if soc is None:
        near = difflib.get_close_matches(arch.upper(), SOCS, n=1, cutoff=0.4)
        raise InputError(
            f"The chip {arch!r} is not known.",
            expected=f"one of {', '.join(SOCS)}",
            got=repr(arch),
            fix=f"did you mean {near[0]!r}?" if near else "leave it out: QNN compiles at load then",
        )
    return soc


def missing() -> tuple[str, str] | None:
    """Why QNN cannot be used here, and what to do; None where it can."""
    if not installed(PACKAGE):
        return "onnxruntime-qnn is not installed", "pip install 'edge-sdk[qnn]'"
    try:
        found = bool(devices())
    except EngineUnavailableError as error:
        return error.what, error.fix or ""
    if not found:
        return "QNN finds no NPU here", "use a machine with a Snapdragon, or x86-64 Linux"
    return None


def simulated() -> bool:
    """Whether the NPU here is the simulator that QNN's library for x86-64 Linux brings."""
    return (platform.system(), platform.machine()) == ("Linux", "x86_64")


def sdk_version() -> str:
    """Version of the QNN SDK in the package."""
    info = require(f"{PACKAGE}.build_and_package_info", purpose="The NPU of 'onnxruntime'")
    return str(info.qnn_version)


def this_soc() -> str | None:
    """Name of the chip of this machine, where the system tells."""
    return SOC_FILE.read_text().strip().upper() if SOC_FILE.is_file() else None


@functools.cache
def devices() -> tuple[Any, ...]:
    """ONNX Runtime's devices of the HTP. Registers the provider, once in a process."""
    ort = require("onnxruntime", purpose="The engine 'onnxruntime'")
    package = require(PACKAGE, purpose="The NPU of 'onnxruntime'")
    state = require("onnxruntime.capi.onnxruntime_pybind11_state", purpose="ONNX Runtime")
    try:
        if PROVIDER not in {device.ep_name for device in ort.get_ep_devices()}:
            ort.register_execution_provider_library(PROVIDER, package.get_library_path())
    except (state.Fail, state.RuntimeException) as error:
        raise EngineUnavailableError(
            f"ONNX Runtime {ort.__version__} cannot load QNN's execution provider.",
            got=str(error).splitlines()[0],
            fix="pip install -U 'edge-sdk[onnxruntime,qnn]'",
        ) from error
    kinds = ort.OrtHardwareDeviceType
    found = [device for device in ort.get_ep_devices() if device.ep_name == PROVIDER]
    npus = [device for device in found if device.device.type == kinds.NPU]
    # Where the system lists no NPU of its own, the HTP stands behind the CPU's entry.
    return tuple(npus or [device for device in found if device.device.type == kinds.CPU])


def add_provider(options: Any, arch: str | None, **more: str) -> None:
    """Let sessions with these `SessionOptions` use the HTP, prepared for the chip `arch`."""
    soc = soc_of(arch) if arch else SIMULATED if simulated() else None
    settings = {
        "backend_path": require(PACKAGE, purpose="The NPU").get_qnn_htp_path(),
        # Else the first quantization and the last dequantization would run on the CPU.
        "offload_graph_io_quantization": "0",
        **more,
    }
    if soc is not None:
        settings |= {"soc_model": str(soc.model), "htp_arch": str(soc.htp)}
    options.add_provider_for_devices(list(devices()), settings)


_loading = threading.Lock()
_loaded = False


@contextlib.contextmanager
def loading() -> Iterator[None]:
    """Create sessions in here: the simulator's library prints a line on stdout when it is loaded.

    That must not get into what a command prints for other programs: once in a process, stdout's
    file descriptor is that of stderr meanwhile.
    """
    global _loaded
    with _loading:
        first, _loaded = simulated() and not _loaded, True
        with _stdout_to_stderr() if first else contextlib.nullcontext():
            yield


@contextlib.contextmanager
def _stdout_to_stderr() -> Iterator[None]:
    saved = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        ctypes.CDLL(None).fflush(None)
        os.dup2(saved, 1)
        os.close(saved)


def build_context(model: str, output: str, arch: str) -> None:
    """Compile `model` to a context binary within the ONNX file `output`, and say what is in it.

    Run in a process of its own by the compiler: on some graphs QNN's library aborts. Beside
    `output` stands QNN's `qnn_op_trace.json`: which of its operators came of which node.
    """
    ort = require("onnxruntime", purpose="The engine 'onnxruntime'")
    options = ort.SessionOptions()
    options.log_severity_level = 4
    folder = str(Path(output).parent)
    trace = {"enable_framework_op_trace": "1", "framework_op_trace_dir": folder}
    add_provider(options, arch or None, **trace)
    compiler = ort.ModelCompiler(options, model, embed_compiled_data_into_model=True)
    compiler.compile_to_file(output)
