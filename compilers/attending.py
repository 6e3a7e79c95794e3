"""What a model of `transformers` attends by, for the length of a block.

The models look up their attention function by a name that stands in their configurations, of which
a model may have several. So all of them are changed, and changed back.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor
from torch.nn import Module

from sdk.extras import require

NAME = "edge"
UNKNOWN = ("s_aux", "head_mask", "indexer_topk_indices", "block_indices")
Attend = Callable[..., Tensor]
"""Query [1, H, W, D], key, value, scaling, and by name what else a model tells its attention: the
mix of values [1, W, H, D]."""


@contextlib.contextmanager
def attending(model: Module, attend: Attend) -> Iterator[None]:
    """In the block all parts of `model` attend by `attend`; behind it as they did before."""
    interface = require("transformers.modeling_utils", purpose="A language model")
    interface.AttentionInterface.register(NAME, _attend)
    configs: dict[int, Any] = {
        id(part.config): part.config for part in model.modules() if hasattr(part, "config")
    }
    before = {key: config._attn_implementation for key, config in configs.items()}
    _RUNNING.append(attend)
    try:
        for config in configs.values():
            config._attn_implementation = NAME
        yield
    finally:
        _RUNNING.pop()
        for key, config in configs.items():
            config._attn_implementation = before[key]


def refuse(told: Mapping[str, Any], *names: str) -> None:
    """NotImplementedError where a model tells its attention of `names`, or what none here knows."""
    for name in (*UNKNOWN, *names):
        if told.get(name) is not None:
            raise NotImplementedError(f"attention with {name}")


_RUNNING: list[Attend] = []


def _attend(
    module: Any,  # noqa: ARG001  transformers' convention
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,  # noqa: ARG001  who attends has masks
    scaling: float | None = None,
    **more: Any,
) -> tuple[Tensor, None]:
    """The function that the models find under `NAME`."""
    factor = query.shape[-1] ** -0.5 if scaling is None else scaling
    return _RUNNING[-1](query, key, value, factor, **more), None
