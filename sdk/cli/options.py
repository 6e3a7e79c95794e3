"""Arguments and options that several verbs have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

ArtifactPath = Annotated[Path, Argument(help="The artifact, a folder NAME.edge.")]
Device = Annotated[str, Option(help="auto (the artifact's own), cpu, gpu or npu.")]
Overwrite = Annotated[bool, Option("--overwrite", help="Replace an artifact that is there.")]
Threads = Annotated[
    int | None, Option(min=1, help="The engine's threads. Default: all cores allowed.")
]
Resume = Annotated[bool, Option(help="Take up an earlier run of the same settings.")]

# Of the verbs that compile.
Model = Annotated[
    str,
    Argument(
        help="package.module:callable that returns an nn.Module, an .onnx file, or a Hugging "
        "Face model folder."
    ),
]
Output = Annotated[Path, Option("--output", "-o", help="The artifact; ends in .edge.")]
Example = Annotated[
    Path | None,
    Option("--inputs", help="Real example inputs: .npz or .safetensors by name, or .npy."),
]
Shape = Annotated[
    list[str] | None,
    Option(help="Random example input, name=1x3x224x224[:dtype]. Repeat for each input."),
]
Task = Annotated[
    str | None, Option(help="Task of a Hugging Face folder, such as text-classification.")
]
Dynamic = Annotated[
    list[str] | None,
    Option(help="A size that varies, input:axis=name[:min:opt:max]. May be repeated."),
]
Calibration = Annotated[
    Path | None,
    Option(help="Real inputs along axis 0 (.npz, .npy, .safetensors), or a folder of images."),
]
ProcessorFile = Annotated[
    Path | None,
    Option("--processor", help="JSON of sdk.Processor: how raw input becomes the model's."),
]
Labels = Annotated[Path | None, Option(help="Text file with one class label on each line.")]
KeepFloat = Annotated[list[str] | None, Option(help="Layer to leave in float. May be repeated.")]
GroupSize = Annotated[
    int | None, Option(help="Weights that share a scale, for int4 and int2; default: 32.")
]
Method = Annotated[
    str,
    Option(help="Rounding of weight-only precisions: rtn, hqq, awq, gptq, scale_estimation."),
]
Fallback = Annotated[
    str, Option(help="Operators that the device does not run: forbid, warn or allow.")
]
Kernels = Annotated[
    str,
    Option(
        help="Plugin kernels: auto, native (also for the engine's own layers, where measured to be"
        " faster), portable (with a body for engines without it), decomposed."
    ),
]
Waive = Annotated[
    list[str] | None,
    Option(help="Gate to pass over and record: parity, fidelity or slower. May be repeated."),
]
