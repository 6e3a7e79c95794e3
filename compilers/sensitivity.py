"""What quantizing one layer alone does to the outputs: which layers to leave in float first.

Measured on the calibrated float graph. For each layer only the observers around it quantize, those
of its weight included, and everything else stays in float.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node
from torch.utils import _pytree as pytree

from sdk.compilers.annotate import ARITHMETIC, WEIGHTED, fused_clip, layer_of
from sdk.compilers.calibrate import Step, observer_nodes
from sdk.compilers.program import Feed
from sdk.signature import Dim, Signature

FEEDS = 3
ROWS = 4  # of a batch
Values = dict[Node, Any]


def layer_costs(
    observed: GraphModule, signature: Signature, feeds: Sequence[Feed], step: Step | None = None
) -> list[tuple[str, float]]:
    """Layers and their costs, worst first, of a graph with calibrated observers.

    A cost is the relative RMS change of the output that changes most, mean over `FEEDS` feeds.
    """
    layers = _observers_by_layer(observed)
    watch = _Watch(observed)
    chosen = _spread(feeds, FEEDS)
    costs: dict[str, float] = dict.fromkeys(layers, 0.0)
    for index, feed in enumerate(chosen):
        clean = watch.values(_tensors(signature, feed), {}, ())
        for done, (layer, nodes) in enumerate(layers.items()):
            costs[layer] += watch.change(clean, nodes) / len(chosen)
            if step is not None:
                step("layer costs", index * len(layers) + done + 1, len(chosen) * len(layers))
    return sorted(costs.items(), key=lambda item: -item[1])


class _Watch:
    """Runs the graph again from the point where a layer quantizes."""

    def __init__(self, graph: GraphModule) -> None:
        self.graph = graph
        watching = list(observer_nodes(graph))
        self.modules = {node: graph.get_submodule(str(node.target)) for node in watching}
        self.rounders: dict[int, Callable[[Tensor], Tensor]] = {}
        # what an operator in place has changed cannot be taken up again
        self.pure = not any(map(_mutates, graph.graph.nodes))

    def values(self, inputs: list[Tensor], known: Values, active: Collection[Node]) -> Values:
        """Each node's value; `known` are those that are not computed again."""
        runner = _Runner(self.graph, {n: self._rounder(n) for n in active}, set(self.modules))
        with torch.no_grad():
            runner.run(*inputs, initial_env=dict(known))
        return runner.env

    def change(self, clean: Values, active: Collection[Node]) -> float:
        """Relative RMS change of the output that changes most while `active` quantize."""
        touched = _downstream(active)
        inputs = [value for node, value in clean.items() if node.op == "placeholder"]
        known = {n: v for n, v in clean.items() if n not in touched} if self.pure else {}
        changed = self.values(inputs, known, active)
        (result,) = (node for node in self.graph.graph.nodes if node.op == "output")
        pairs = zip(_floats(changed[result]), _floats(clean[result]), strict=True)
        return max((_distance(got, want) for got, want in pairs), default=0.0)

    def _rounder(self, node: Node) -> Callable[[Tensor], Tensor]:
        observer = self.modules[node]
        if id(observer) not in self.rounders:
            self.rounders[id(observer)] = _rounder(observer)
        return self.rounders[id(observer)]


class _Runner(Interpreter):
    """Observers pass values through, or round them; nothing is calibrated further."""

    def __init__(
        self,
        graph: GraphModule,
        active: dict[Node, Callable[[Tensor], Tensor]],
        observers: Collection[Node],
    ) -> None:
        super().__init__(graph, garbage_collect_values=False)
        self.active, self.observers = active, observers

    def run_node(self, n: Node) -> Any:
        """Run one node; an observer rounds only where it is active."""
        if n not in self.observers:
            return super().run_node(n)
        value = self.env[n.all_input_nodes[0]]
        return self.active[n](value) if n in self.active else value


def _rounder(observer: Any) -> Callable[[Tensor], Tensor]:
    """To the observer's grid and back."""
    params = observer.calculate_qparams()
    if isinstance(params, Tensor):  # floating point: a scale alone
        return lambda x: (x / params).to(observer.dtype).to(x.dtype) * params
    (scale, zero), low, high = params, observer.quant_min, observer.quant_max
    if scale.numel() > 1:
        axis = observer.ch_axis
        return lambda x: torch.fake_quantize_per_channel_affine(
            x, scale, zero.to(torch.int32), axis, low, high
        )
    return lambda x: torch.fake_quantize_per_tensor_affine(x, float(scale), int(zero), low, high)


def _observers_by_layer(graph: GraphModule) -> dict[str, set[Node]]:
    """Layer -> the observers of its inputs, its weight and its output."""
    watching = set(observer_nodes(graph))
    found: dict[str, set[Node]] = defaultdict(set)
    for node in graph.graph.nodes:
        if node.target in {*WEIGHTED, *ARITHMETIC} and watching.issuperset(node.args[:2]):
            around = {*node.all_input_nodes, *fused_clip(node).users}
            found[layer_of(node)] |= around & watching
    return dict(found)


def _downstream(nodes: Collection[Node]) -> set[Node]:
    found, stack = set(nodes), list(nodes)
    while stack:
        new = [user for user in stack.pop().users if user not in found]
        found.update(new)
        stack += new
    return found


def _mutates(node: Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return schema is not None and schema.is_mutable


def _floats(result: Any) -> Iterator[Tensor]:
    for value in pytree.tree_leaves(result):
        if isinstance(value, Tensor) and value.is_floating_point():
            yield value


def _distance(got: Tensor, want: Tensor) -> float:
    """RMS of the difference over the spread of what is wanted; infinite where it is not finite."""
    spread = float((want - want.mean()).square().mean().sqrt()) or 1.0
    cost = float((got - want).square().mean().sqrt()) / spread
    return cost if np.isfinite(cost) else float("inf")


def _spread(feeds: Sequence[Feed], count: int) -> list[Feed]:
    """`count` feeds from all over the calibration data."""
    places = np.linspace(0, len(feeds) - 1, min(count, len(feeds))).round().astype(int)
    return [feeds[place] for place in places]


def _tensors(signature: Signature, feed: Feed) -> list[Tensor]:
    """The feed in the order of the signature; batches of a dynamic size are cut to `ROWS`."""
    first = [spec.shape[0] if spec.shape else 0 for spec in signature.inputs]
    shared = isinstance(first[0], Dim) and all(dim == first[0] for dim in first)
    rows = max(ROWS, first[0].min) if isinstance(first[0], Dim) and shared else None
    return [torch.from_numpy(np.ascontiguousarray(feed[s.name][:rows])) for s in signature.inputs]
