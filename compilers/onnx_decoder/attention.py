"""Where a step attends: the operators that `causal_lm.Pass.attend` became."""

from __future__ import annotations

from dataclasses import dataclass

from onnx import NodeProto

from sdk.compilers.onnx_decoder.graph import Graph, perm

MASKS = ["past_mask", "new_mask"]
SPREAD = ("Tile", "Expand", "Reshape", "Unsqueeze", "Concat")


@dataclass(frozen=True)
class Attention:
    """One layer's: what goes in, [1, heads, W, D] each, and the value that comes out."""

    query: str
    keys: str
    values: str
    heads: int
    scale: float
    output: str
    """[1, W, heads * D]."""


def find(graph: Graph, layer: int) -> Attention | None:
    """The attention over `past_keys_<layer>`; None where it is another than the plain one.

    Plain is: no window, no cap on scores, nothing of it on an integer grid.
    """
    product = graph.down(f"past_keys_{layer}", "Transpose", "MatMul")
    joined = None if product is None else graph.reader(product.output[0], "Concat")
    if product is None or joined is None:
        return None
    weights = graph.down(joined.output[0], "Add", "Softmax", "Split")
    if weights is None or not _plain_mask(graph, joined.output[0]):
        return None
    query, scale = _query(graph, product.input[0])
    keys = graph.up(joined.input[1], "MatMul")
    keys = None if keys is None else graph.up(keys.input[1], "Transpose", "Squeeze")
    share = graph.reader(weights.output[1], "MatMul")
    values = None if share is None else graph.made_by(share.input[1], "Squeeze")
    end = _end(graph, layer)
    if query is None or keys is None or values is None or end is None:
        return None
    return Attention(query, keys.input[0], values.input[0], end[0], scale, end[1])


def _plain_mask(graph: Graph, scores: str) -> bool:
    """Whether what is added to the scores shows exactly what the two masks show."""
    (add,) = graph.readers[scores]
    (bias,) = (name for name in add.input if name != scores)
    node = graph.maker.get(bias)
    while node is not None and node.op_type in SPREAD:
        node = graph.maker.get(node.input[0])
    if node is None or node.op_type != "Where":
        return False
    masks = graph.made_by(node.input[0], "Concat")
    return masks is not None and list(masks.input) == MASKS


def _query(graph: Graph, name: str) -> tuple[str | None, float]:
    """The query in front of its scale, heads that share keys still apart."""
    scale = 1.0
    node: NodeProto | None = graph.made_by(name, "Mul")
    if node is not None:
        factors = [graph.numbers(value) for value in node.input]
        found = [index for index, value in enumerate(factors) if value and len(value) == 1]
        if len(found) != 1:
            return None, scale
        (scale,) = factors[found[0]] or [scale]
        name = node.input[1 - found[0]]
    squeezed = graph.up(name, "Reshape", "Squeeze")
    return (None if squeezed is None else squeezed.input[0]), scale


def _end(graph: Graph, layer: int) -> tuple[int, str] | None:
    """Number of heads, and the mixed values with the heads side by side."""
    split = graph.down(f"past_values_{layer}", "MatMul", "Add", "Reshape")
    sizes = None if split is None else graph.numbers(split.input[1])
    turned = None if split is None else graph.reader(split.output[0], "Transpose")
    whole = None if turned is None else graph.reader(turned.output[0], "Reshape")
    if sizes is None or len(sizes) != 4 or turned is None or whole is None:
        return None
    last = graph.numbers(whole.input[1])
    if perm(turned) != [0, 2, 1, 3] or last is None or len(last) != 3:
        return None
    return int(sizes[1]), str(whole.output[0])
