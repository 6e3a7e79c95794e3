"""`edge::scale_add` in Core ML."""

from __future__ import annotations

from typing import Any


def composite(mb: Any, x: Any, y: Any = None, *, alpha: float) -> Any:
    """Without y, x itself; the product where alpha is not 1."""
    if y is None:
        return mb.identity(x=x)
    return mb.add(x=x, y=y if alpha == 1 else mb.mul(x=y, y=alpha))
