"""What follows from a tree's parents alone. Small trees look alike: most were seen before."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

ROOT = -1
Parents = tuple[int, ...]
_remembered = lru_cache(maxsize=512)


@_remembered
def is_tree(parents: Parents) -> bool:
    """Whether each node comes after its parent."""
    return all(ROOT <= parent < node for node, parent in enumerate(parents))


@_remembered
def children(parents: Parents) -> tuple[tuple[int, ...], ...]:
    """[n + 1]: the nodes below the root, then those below each node, in order."""
    below: list[list[int]] = [[] for _ in range(len(parents) + 1)]
    for node, parent in enumerate(parents):
        below[parent + 1].append(node)
    return tuple(tuple(nodes) for nodes in below)


@_remembered
def depths(parents: Parents) -> tuple[int, ...]:
    """[n]: distance from the root, 1 for its children."""
    found: list[int] = []
    for parent in parents:
        found.append(1 if parent == ROOT else found[parent] + 1)
    return tuple(found)


@_remembered
def sight(parents: Parents) -> NDArray[np.bool_]:
    """[n, n]: which nodes each one sees, its ancestors and itself."""
    seen = np.eye(len(parents), dtype=bool)
    for node, parent in enumerate(parents):
        if parent != ROOT:
            seen[node] |= seen[parent]
    seen.flags.writeable = False
    return seen
