"""Plugin kernels in a program: which stay one node of the engine's file, and what the rest becomes.

A kernel's node stays where the engine's binding has it for the node's dtypes; elsewhere its plain
torch function takes its place, and the engine sees ordinary operators.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.fx import Node

from sdk.compilers.program import Program
from sdk.errors import InputError
from sdk.kernels.interface import DTYPES, LETTERS
from sdk.kernels.library import Library, found_library
from sdk.kernels.needs import NATIVE, PORTABLE
from sdk.kernels.openvino import found_extension
from sdk.kernels.registry import composites
from sdk.kernels.spec import KernelSpec, described
from sdk.manifest import KernelUse
from sdk.target import Target

AUTO, DECOMPOSED, COMPOSITE = "auto", "decomposed", "composite"
POLICIES = (AUTO, NATIVE, PORTABLE, DECOMPOSED)
ANY = "*"  # of dtypes
LETTER = dict(zip(DTYPES, LETTERS, strict=True))


@dataclass(frozen=True)
class Plan:
    """A program whose remaining kernel nodes the engine has, and what became of each kernel."""

    program: Program
    uses: tuple[KernelUse, ...] = ()


def check_policy(policy: str) -> None:
    """InputError unless it is one that there is."""
    if policy not in POLICIES:
        raise InputError(
            f"The policy for kernels {policy!r} is not known.",
            expected=f"one of {', '.join(POLICIES)}",
            got=policy,
        )


def with_policy(program: Program, policy: str) -> Program:
    """`program` under another policy; what was made of it under this one is kept."""
    check_policy(policy)
    return program if policy == program.kernel_policy else replace(program, kernel_policy=policy)


def spec_of(node: Node) -> KernelSpec | None:
    """The kernel of a node, if it is one's."""
    if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
        return None
    return described(node.target._schema.name)


def kernel_nodes(exported: ExportedProgram) -> Iterator[tuple[Node, KernelSpec]]:
    """The nodes of plugin kernels, in their order."""
    for node in exported.graph.nodes:
        if (spec := spec_of(node)) is not None:
            yield node, spec


def plan(program: Program, target: Target) -> Plan:
    """`program` for the target's engine. Made once for a program and a binding."""
    if not any(kernel_nodes(program.exported)):
        return Plan(program)
    binding = binding_of(target, program.kernel_policy)
    key = f"kernels of {binding.name}"
    if key not in program.lowered:
        program.lowered[key] = _plan(program, binding)
    made: Plan = program.lowered[key]
    return made


@dataclass(frozen=True)
class Binding:
    """What an engine can run of the library: version and types by name without the domain."""

    name: str
    kernels: Mapping[str, tuple[int, str]]
    use: str = NATIVE

    def has(self, spec: KernelSpec, dtypes: Collection[torch.dtype | None]) -> bool:
        """Whether it has the kernel for tensors of these dtypes; None is one that is left out."""
        version, types = self.kernels.get(spec.short, (0, ""))
        if types == ANY:
            return True
        wanted = [None if dtype is None else LETTER.get(_name(dtype), "none") for dtype in dtypes]
        return version >= spec.version and any(
            all(want in (None, have) for want, have in zip(wanted, line, strict=False))
            for line in types.split()
        )


NOTHING = Binding(DECOMPOSED, {})


def binding_of(target: Target, policy: str = AUTO) -> Binding:
    """The kernels that `target` runs natively, as far as this machine can tell."""
    check_policy(policy)
    if target.engine == "coreml" and policy != DECOMPOSED:
        return Binding("coreml", {name: (0, ANY) for name in composites()}, COMPOSITE)
    if policy == DECOMPOSED or target.device != "cpu":
        return NOTHING
    if policy == PORTABLE and target.engine not in INLINES:
        return NOTHING
    found = BINDINGS.get(target.engine, lambda: None)()
    if found is None:
        return NOTHING
    rows = {n: (int(r.version), (r.types or b"").decode()) for n, r in found.kernels.items()}
    use = PORTABLE if policy == PORTABLE else NATIVE
    return Binding(f"{target.engine} {use} {found.path}", rows, use)


def _onnxruntime() -> Library | None:
    return found_library()[0]


def _openvino() -> Library | None:
    return found_extension()[0]


BINDINGS: dict[str, Callable[[], Library | None]] = {
    "onnxruntime": _onnxruntime,
    "openvino": _openvino,
}
INLINES = ("onnxruntime",)  # engines that run a node's body where they have not its kernel


def _plan(program: Program, binding: Binding) -> Plan:
    uses: dict[KernelUse, None] = {}
    for node, spec in kernel_nodes(program.exported):
        kept = binding.has(spec, _dtypes(spec, node.args, node.kwargs))
        use = binding.use if kept else DECOMPOSED
        uses[KernelUse(spec.name, spec.version, use)] = None
    kept_names = tuple(sorted({use.name for use in uses if use.binding != DECOMPOSED}))
    base = program.base if program.base is None else _plan(program.base, binding).program
    made = replace(
        program, exported=decomposed(program.exported, binding), base=base, kernels=kept_names
    )
    return Plan(made, tuple(sorted(uses, key=lambda use: (use.name, use.binding))))


def decomposed(exported: ExportedProgram, binding: Binding = NOTHING) -> ExportedProgram:
    """The same program, with ordinary operators for kernels that the binding does not have."""
    table = {}
    for node, spec in kernel_nodes(exported):
        if not binding.has(spec, _dtypes(spec, node.args, node.kwargs)):
            table[spec.op] = _unless_kept(spec, binding)
    with torch.no_grad():
        return exported.run_decompositions(table) if table else exported


def _unless_kept(spec: KernelSpec, binding: Binding) -> Callable[..., Any]:
    def decomposition(*args: Any, **kwargs: Any) -> Any:
        if binding.has(spec, _dtypes(spec, args, kwargs)):
            return NotImplemented
        return spec.reference(*args, **kwargs)

    return decomposition


def _dtypes(
    spec: KernelSpec, args: Collection[Any], kwargs: Mapping[str, Any]
) -> list[torch.dtype | None]:
    """Of the tensors of a call, by position; None where one is left out."""
    given = dict(zip((p.name for p in spec.parameters), args, strict=False)) | dict(kwargs)
    return [_dtype(given.get(p.name)) for p in spec.tensors]


def _dtype(value: Any) -> torch.dtype | None:
    if isinstance(value, Node):
        value = value.meta["val"]
    return value.dtype if isinstance(value, torch.Tensor) else None


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
