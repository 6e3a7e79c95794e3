"""Root mean square norms in the form that ONNX Runtime fuses into one kernel."""

from __future__ import annotations

from pathlib import Path

import onnx
from onnx import NodeProto

from sdk.compilers.onnx_rewrites import Wires


def divide_by_roots(file: Path) -> None:
    """x * (1 / sqrt(v)) becomes x / sqrt(v): torch writes the one, ONNX Runtime fuses the other."""
    model = onnx.load_model(file)
    graph, wires = model.graph, Wires.of(model.graph)
    inverses = [node for node in graph.node if node.op_type == "Reciprocal"]
    for inverse in inverses:
        root = wires.maker.get(inverse.input[0])
        product = wires.only_reader(inverse)
        if root is None or root.op_type != "Sqrt" or not _is_product(product):
            continue
        assert product is not None
        (other,) = [name for name in product.input if name != inverse.output[0]]
        product.op_type = "Div"
        product.input[:] = [other, root.output[0]]
        graph.node.remove(inverse)
    if inverses:
        file.write_bytes(model.SerializeToString())


def _is_product(node: NodeProto | None) -> bool:
    return node is not None and node.op_type == "Mul" and len(set(node.input)) == 2
