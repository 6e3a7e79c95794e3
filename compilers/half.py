"""A program in half precision: fp16 or bf16 inside, inputs and outputs as before."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.utils import _pytree as pytree

from sdk.compilers.program import Feed, Program
from sdk.compilers.reexport import reexport

DTYPE = {"fp16": torch.float16, "bf16": torch.bfloat16}


def to_half(program: Program, precision: str, feed: Feed) -> Program:
    """`program` computed at `precision`; the signature stays, values are cast at the border."""
    graph = program.exported.module(check_guards=False)
    own = {name: tensor.detach().clone() for name, tensor in graph.state_dict().items()}
    graph.load_state_dict(own, assign=True)  # .to() would change the program's parameters in place
    _retype(graph, DTYPE[precision])
    module = Cast(graph, DTYPE[precision])
    return replace(reexport(module, program, feed), precision=precision, base=program)


def _retype(graph: GraphModule, dtype: torch.dtype) -> None:
    """Operators that name float32, such as the zero state of an LSTM, name `dtype`."""
    for node in graph.graph.nodes:
        if node.op == "call_function":
            node.args, node.kwargs = pytree.tree_map_only(
                torch.dtype,
                lambda old: dtype if old == torch.float32 else old,
                (node.args, node.kwargs),
            )
    graph.recompile()


class Cast(nn.Module):
    """Casts floats on the way in, runs the module in `dtype`, casts them back on the way out."""

    def __init__(self, module: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.module, self.dtype = module.to(dtype), dtype

    def forward(self, *inputs: Tensor) -> Any:
        """Same inputs and outputs as the wrapped module."""
        # .forward: the exported module's own check wants the keywords that it was captured with
        result = self.module.forward(*(_to(x, torch.float32, self.dtype) for x in inputs))
        return pytree.tree_map(lambda value: _to(value, self.dtype, torch.float32), result)


def _to(value: Tensor, of: torch.dtype, dtype: torch.dtype) -> Tensor:
    return value.to(dtype) if value.dtype == of else value
