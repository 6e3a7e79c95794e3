"""The module that an ONNX graph becomes: one submodule for each node, in the file's order."""

from __future__ import annotations

import inspect
import keyword
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor, nn

from sdk.compilers.onnx_ops.table import HOST_INPUTS, HOST_OPERATORS
from sdk.compilers.onnx_ops.values import Host, Rule, as_tensor, tidy

# attributes of Graph, and the names that its forward cannot give to an input
RESERVED = {"inputs", "self", "training", "steps", "input_names", "output_names"}


def identifier(name: str) -> str:
    text = re.sub(r"\W+", "_", name, flags=re.ASCII).strip("_")
    text = f"_{text}" if not text or text[0].isdigit() else text
    taken = hasattr(nn.Module, text) or text in RESERVED or keyword.iskeyword(text)
    return f"{text}_" if taken else text


def unique(names: Iterable[str]) -> list[str]:
    """Valid, distinct Python names in the same order."""
    taken: Counter[str] = Counter()
    result: list[str] = []
    for name in map(identifier, names):
        candidate = name
        while taken[candidate]:
            candidate = f"{name}_{taken[name]}"
            taken[name] += 1
        taken[candidate] += 1
        result.append(candidate)
    return result


@dataclass(frozen=True)
class Slot:
    """Where one input of a node comes from: a constant of the node, or the values passed to it."""

    attribute: str | None = None  # the buffer or parameter
    host: Host | None = None  # the same constant on the host, where it is small
    passed: bool = False

    @property
    def absent(self) -> bool:
        """Whether the node leaves this optional input out."""
        return self.attribute is None and self.host is None and not self.passed


class Node(nn.Module):
    """One ONNX node: its rule, its attributes, its constants; `origin` names it in the file."""

    def __init__(self, origin: str, op: str, rule: Rule, attributes: dict[str, Any]) -> None:
        super().__init__()
        self.origin, self.op, self.rule, self.attributes = origin, op, rule, attributes
        self.host_rule = HOST_OPERATORS.get(op)
        self.slots: list[Slot] = []

    def extra_repr(self) -> str:
        """The node's operator and name in the file."""
        return self.origin

    def forward(self, *passed: Tensor | Host) -> Any:
        """One tensor, host array, or a tuple of them, as the node has outputs."""
        rest = iter(passed)
        values = [next(rest) if slot.passed else slot.host for slot in self.slots]
        try:
            result = self.on_host(values)
            return self._on_tensors(values) if result is None else result
        except (RuntimeError, TypeError, ValueError, IndexError) as error:
            error.add_note(f"in ONNX node {self.origin}")
            raise

    def on_host(self, values: list[Any]) -> Any:
        """The result as host arrays if all inputs are shapes and the operator can, else None."""
        if self.op in ("Shape", "Size"):
            whole = values[0] if values[0] is not None else self._constant(0)
            return tidy(self.rule(whole, **self.attributes))
        ready = all(
            slot.absent or isinstance(value, np.ndarray)
            for slot, value in zip(self.slots, values, strict=True)
        )
        if self.host_rule is None or not ready:
            return None
        result = self.host_rule(*values, **self.attributes)
        if isinstance(result, tuple):
            return tuple(map(tidy, result))
        return None if result is None else tidy(result)

    def _constant(self, position: int) -> Tensor:
        tensor: Tensor = getattr(self, str(self.slots[position].attribute))
        return tensor

    def _on_tensors(self, values: list[Any]) -> Any:
        wanted = HOST_INPUTS.get(self.op, ())
        for position, slot in enumerate(self.slots):
            on_host = position in wanted and isinstance(values[position], np.ndarray)
            if slot.attribute is not None and not on_host:
                values[position] = self._constant(position)
            elif not on_host:
                values[position] = as_tensor(values[position])
        return self.rule(*values, **self.attributes)


@dataclass(frozen=True)
class Step:
    """One submodule's call; `last` are the names that no later step reads."""

    module: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    last: tuple[str, ...] = ()


class Graph(nn.Module):
    """The nodes in the file's order."""

    def __init__(self, steps: list[Step], inputs: list[str], outputs: tuple[str, ...]) -> None:
        super().__init__()
        self.steps, self.input_names, self.output_names = steps, inputs, outputs

    def forward(self, *inputs: Tensor) -> Any:
        """Outputs in graph order: the tensor if there is one, else a tuple."""
        values: dict[str, Any] = dict(zip(self.input_names, inputs, strict=True))
        for step in self.steps:
            result = getattr(self, step.module)(*(values[name] for name in step.inputs))
            results = result if isinstance(result, tuple) else (result,)
            values.update(zip(step.outputs, results, strict=False))
            for name in step.last:
                values.pop(name, None)
        outputs = tuple(as_tensor(values[name]) for name in self.output_names)
        return outputs if len(outputs) > 1 else outputs[0]


def named(names: list[str]) -> type[Graph]:
    """Graph whose forward has these parameter names, which torch.export gives to the program."""

    def forward(self: Graph, *inputs: Tensor) -> Any:
        return Graph.forward(self, *inputs)

    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    parameters = [inspect.Parameter(name, kind) for name in ["self", *unique(names)]]
    forward.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return type("Graph", (Graph,), {"forward": forward})
