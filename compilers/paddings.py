"""Convolutions whose padding is a word, as ones whose padding is numbers.

`padding="valid"` and `"same"` are an operator of their own, which no rule about convolutions knows:
batch norms behind it are not folded, and it is not quantized.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.fx import GraphModule

aten = torch.ops.aten
NUMBERED = {
    aten.conv1d.padding: aten.conv1d.default,
    aten.conv2d.padding: aten.conv2d.default,
}


def number_paddings(graph: GraphModule) -> GraphModule:
    """Rewrite `graph` in place. An uneven `same`, which pads one side more, stays as it is."""
    for node in graph.graph.nodes:
        if node.op == "call_function" and node.target in NUMBERED:
            given = node.normalized_arguments(graph, normalize_to_only_use_kwargs=True).kwargs
            padding = _numbers(given)
            if padding is not None:
                node.args, node.kwargs = (*({**given, "padding": padding}).values(),), {}
                node.target = NUMBERED[node.target]
    graph.recompile()
    return graph


def _numbers(given: Mapping[str, Any]) -> list[int] | None:
    """The padding on each side of each axis, by the arguments of a convolution."""
    window = given["weight"].meta["val"].shape[2:]
    if given["padding"] == "valid":
        return [0] * len(window)
    steps = list(given["dilation"]) * (len(window) if len(given["dilation"]) == 1 else 1)
    whole = [step * (size - 1) for step, size in zip(steps, window, strict=True)]
    return None if any(size % 2 for size in whole) else [size // 2 for size in whole]
