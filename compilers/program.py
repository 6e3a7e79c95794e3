"""The captured model, and what a compiler makes of it."""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.fx import Node

from sdk.manifest import KernelUse
from sdk.signature import Array, Signature

Feed = Mapping[str, Array]


@dataclass(frozen=True)
class Program:
    """A function captured by torch.export: ATen operators, named inputs and outputs."""

    exported: ExportedProgram
    signature: Signature
    precision: str
    reference: Callable[[Feed], dict[str, Array]]
    """Runs the model in PyTorch as it was given: the oracle of the parity gate."""
    source: str
    """What was captured, for the manifest."""
    kernels: tuple[str, ...] = ()
    """Plugin kernels whose nodes stay nodes of the engine's file; see `kernels.py`."""
    kernel_policy: str = "auto"
    """`auto`, `native` (also in place of the engine's own operators, where a kernel is faster),
    `portable` (each with its body, for engines without it) or `decomposed`."""
    float_layers: tuple[str, ...] = ()
    """Layers that quantization left in float."""
    base: Program | None = None
    """The fp32 program that this one was made from."""
    settings: Mapping[str, str] = field(default_factory=dict)
    """How its precision was made, for the manifest: group size, method."""
    lowered: dict[str, Any] = field(init=False, default_factory=dict, compare=False, repr=False)
    """What was made of it already: engine files by format, half programs by precision; engines that
    need the same one share it."""
    observers: dict[str, dict[str, Any]] = field(
        init=False, default_factory=dict, compare=False, repr=False
    )
    """What calibration saw already: by grid and inputs, then by the node that was watched."""

    def digest(self) -> str:
        """SHA-256 (hex) over the graph and all weights."""
        digest = hashlib.sha256(str(self.exported.graph).encode())
        constants = {
            n: c for n, c in self.exported.constants.items() if isinstance(c, torch.Tensor)
        }
        for name, tensor in sorted((constants | self.exported.state_dict).items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            raw = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
            digest.update(raw.numpy().tobytes())
        return digest.hexdigest()


@dataclass(frozen=True)
class SourceLine:
    """Where an operator comes from: module path, operator, and the line of Python."""

    module: str
    operator: str
    line: str

    def __str__(self) -> str:
        """For messages: the operator, and its place as far as it is known."""
        place = f" in module {self.module!r}" * bool(self.module)
        return f"{self.operator}{place}" + f" at {self.line}" * bool(self.line)


@dataclass(frozen=True)
class Build:
    """What a compiler wrote: the file that holds the function, and where its nodes come from."""

    file: Path
    """Below `folder`; where the engine's file is a folder itself, a regular file in it."""
    sources: Mapping[str, SourceLine] = field(default_factory=dict)
    """Name of a node of the engine file -> its source."""
    requires: Mapping[str, str] = field(default_factory=dict)
    """What the files are tied to: a library version, a compute capability, a chip."""
    depth: int = 1
    """How far `file` lies below `folder`."""
    kernels: tuple[KernelUse, ...] = ()
    """What became of each plugin kernel of the program."""

    @property
    def folder(self) -> Path:
        """All that was written; it becomes the artifact's."""
        return self.file.parents[self.depth - 1]


def source_of(node: Node) -> SourceLine:
    """The module path, operator and Python line of a node, from torch.export's records."""
    stack = node.meta.get("nn_module_stack") or {}
    paths = [str(path) for path, _ in stack.values()]
    return SourceLine(
        module=paths[-1] if paths else "",
        operator=_operator(node.target),
        line=user_line(node.meta.get("stack_trace") or ""),
    )


def _operator(target: Any) -> str:
    """Of a plain function its name: its text has an address, which differs from run to run."""
    if isinstance(target, str | torch._ops.OperatorBase):
        return str(target)
    module = getattr(target, "__module__", None) or "builtins"
    return f"{module.removeprefix('_')}.{target.__qualname__}"


def owner_of(node: Node) -> SourceLine:
    """The source of a node; that of the operator it serves for a Q/DQ node of the quantizer's.

    A quantized activation belongs to the operator that made it, a quantized weight or model input
    to the one that takes it.
    """
    made = source_of(node)
    if made.module or not _is_pair(node):
        return made
    found = _beyond_pairs(node, back=True) or _beyond_pairs(node, back=False)
    return made if found is None else replace(source_of(found), operator=made.operator)


def _beyond_pairs(node: Node, *, back: bool) -> Node | None:
    """The nearest operator that is not Q/DQ, along first inputs or first users."""
    near: Node | None = node
    while near is not None and _is_pair(near):
        steps = near.all_input_nodes if back else list(near.users)
        near = steps[0] if steps else None
    return near if near is not None and near.op == "call_function" else None


def _is_pair(node: Node) -> bool:
    return str(node.target).startswith(("quantized_decomposed.", "torchao."))


FRAME = re.compile(r'File "([^"]+)", line (\d+), in \S+\n\s*(.+)')


def user_line(stack_trace: str) -> str:
    """`file.py:12: code` of the innermost frame outside torch, or the empty text."""
    frames = [match for match in FRAME.findall(stack_trace) if not _is_library(match[0])]
    if not frames:
        return ""
    file, line, code = frames[-1]
    return f"{Path(file).name}:{line}: {code.strip()}"


def _is_library(file: str) -> bool:
    """Frames of torch and of this package's own capture say nothing about the user's model."""
    return "/torch/" in file or file.startswith("<") or "/compilers/" in file


@contextlib.contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """PyTorch with `count` threads: the reference is timed beside engines that have as many."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
