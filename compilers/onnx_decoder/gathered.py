"""Which rows of a step go on to its output layer."""

from __future__ import annotations

from sdk.compilers.onnx_decoder.graph import FLAT, Graph

ROWS = ("Transpose", "GatherND", "Transpose")


def gather(graph: Graph) -> None:
    """The rows whose logits are wanted, without turning all that was computed."""
    picked = graph.made_by("logits", "Gather")
    product = None if picked is None else graph.made_by(picked.input[0], *FLAT[:2])
    if picked is None or product is None or graph.numbers(picked.input[1]) != [0]:
        return
    end = graph.up(product.input[0], *ROWS)
    chosen = graph.up(product.input[0], *ROWS[:2])
    rows = None if chosen is None else graph.made_by(chosen.input[1], "Unsqueeze")
    if end is None or rows is None or rows.input[0] != "rows":
        return
    name = f"{end.input[0]}.rows"
    graph.add("Gather", [end.input[0], "rows"], [name], axis=1)
    product.input[0] = name
    graph.sort()
