"""Which module of the PyTorch model an engine's operator comes from.

Engines fuse, split and rename the nodes of their file. An operator is traced, in this order:

- `name`: its name, or that of a node that was fused into it, holds the name of a node of the file;
- `between`: it stands between two such operators, and the file has nodes between theirs that no
  other operator is named after;
- `neighbour`: nothing is left between them, or it only changes layout or type: the engine added it,
  and it counts to the operator behind it;
- `unknown`: none of these.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sdk.artifact import SOURCES, Artifact
from sdk.errors import CorruptArtifactError
from sdk.runtimes.session import OperatorTime
from sdk.structure import parse

Sources = Mapping[str, tuple[str, str, str]]


@dataclass(frozen=True, slots=True)
class Origin:
    """Where an engine's operator comes from, and how that was found."""

    modules: tuple[str, ...]
    """Module paths in the order of the file, the first is the one it counts to; `` is the model."""
    operators: tuple[str, ...]
    """PyTorch's operators."""
    line: str
    """Python line of the first."""
    nodes: tuple[str, ...]
    """Nodes of the engine file."""
    how: str


CONVERSIONS = ("Reorder", "Transpose", "Convert", "Cast", "MemcpyToHost", "MemcpyFromHost")
UNKNOWN = Origin((), (), "", (), "unknown")


def read_sources(artifact: Artifact) -> Sources:
    """Node of the engine file -> module, operator, Python line; empty where there is no record."""
    text = artifact.read(SOURCES)
    try:
        rows = parse(text, "sources") if text is not None else {}
        return {str(name): _row(row) for name, row in rows.items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise CorruptArtifactError(f"{SOURCES} cannot be read.", got=error) from error


def _row(row: Any) -> tuple[str, str, str]:
    module, operator, line = row
    return str(module), str(operator), str(line)


def attribute(operators: Sequence[OperatorTime], sources: Sources) -> list[Origin]:
    """The origin of each engine operator; they come in the order of execution."""
    if not sources:
        return [UNKNOWN] * len(operators)
    pattern, order = _pattern(sources), list(sources)
    found = [_named(row.operator, row.nodes, pattern) for row in operators]
    free = set(order).difference(*found)
    for index, row in enumerate(operators):
        found[index] = _with_kind(row.kind, found[index], order, free, sources)
    return [
        _origin(nodes, sources, "name")
        if nodes
        else _inferred(operators[index].kind, index, found, order, sources)
        for index, nodes in enumerate(found)
    ]


def _pattern(sources: Sources) -> re.Pattern[str]:
    """Any node's name, whole: not `node_mean` in `node_mean_1`. The longest wins."""
    names = sorted(sources, key=len, reverse=True)
    return re.compile(rf"(?<![A-Za-z0-9.])(?:{'|'.join(map(re.escape, names))})(?![A-Za-z0-9]|_\d)")


def _named(name: str, nodes: Sequence[str], pattern: re.Pattern[str]) -> tuple[str, ...]:
    """Nodes of the file in the names that an operator has; a whole name goes before a part."""
    whole = [node for node in nodes if pattern.fullmatch(node)]
    if whole:
        return tuple(dict.fromkeys(whole))
    for text in (*nodes, name):
        match = pattern.search(text)
        if match:
            return (match[0],)
    return ()


def _with_kind(
    kind: str, nodes: tuple[str, ...], order: list[str], free: set[str], sources: Sources
) -> tuple[str, ...]:
    """With the node before, where an engine named a `Conv` after the `relu` that it took in."""
    before = order[order.index(nodes[0]) - 1] if nodes else ""
    is_kind = [kind.lower() in sources[node][1] for node in (before, *nodes) if node]
    return (before, *nodes) if before in free and is_kind[0] and not any(is_kind[1:]) else nodes


def _inferred(
    kind: str, index: int, found: list[tuple[str, ...]], order: list[str], sources: Sources
) -> Origin:
    place = {name: position for position, name in enumerate(order)}
    before = next((nodes for nodes in reversed(found[:index]) if nodes), ())
    behind = next((nodes for nodes in found[index + 1 :] if nodes), ())
    low = max((place[node] for node in before), default=-1)
    high = min((place[node] for node in behind), default=len(order))
    free = set(order[low + 1 : high]).difference(*found)
    work = [node for node in order if node in free and "quantize" not in sources[node][1]]
    if work and not kind.startswith(CONVERSIONS):
        return _origin(work, sources, "between")
    near = behind or before
    return _origin(near, sources, "neighbour") if near else UNKNOWN


def _origin(nodes: Sequence[str], sources: Sources, how: str) -> Origin:
    """One operator's nodes; the Q/DQ nodes around its work do not decide what it is."""
    work = [node for node in nodes if "quantize" not in sources[node][1]] or list(nodes)
    rows = [sources[node] for node in work]
    if not any(row[1] for row in rows):
        return UNKNOWN
    return Origin(
        modules=tuple(dict.fromkeys(row[0] for row in rows)),
        operators=tuple(dict.fromkeys(row[1] for row in rows)),
        line=rows[0][2],
        nodes=tuple(nodes),
        how=how,
    )
