"""Operators that draw random numbers: what a model makes of them cannot be compared with anything.

They alone are no fault: a model may multiply what it draws by nothing, as speech models do whose
scale of noise is 0.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch.fx import Node

from sdk.compilers.program import Feed, Program, source_of
from sdk.errors import UnsupportedOperatorError
from sdk.signature import Array

FIX = "make what is drawn an input of the model"
# Arguments by which an operator draws nothing: dropout, recurrent layers and attention have them.
OFF = {"train": False, "training": False, "dropout_p": 0.0}


def draws(node: Node) -> bool:
    """Whether an operator takes numbers from torch's generator."""
    target = node.target
    if not isinstance(target, torch._ops.OpOverload):
        return False
    seeded = torch.Tag.nondeterministic_seeded in target.tags
    return seeded and not any(_argument(node, name) == off for name, off in OFF.items())


def check_repeatable(program: Program, feed: Feed) -> None:
    """UnsupportedOperatorError where the outputs for `feed` depend on what the model draws."""
    drawing = [node for node in program.exported.graph.nodes if draws(node)]
    if not drawing:
        return
    with torch.random.fork_rng(devices=[]):
        first, second = (_seeded(program, feed, seed) for seed in (0, 1))
    if all(np.array_equal(first[name], second[name], equal_nan=True) for name in first):
        return
    more = f", and {len(drawing) - 1} more operators" * (len(drawing) > 1)
    raise UnsupportedOperatorError(
        "The model's outputs depend on random numbers that it draws: there is nothing to compare "
        "a compiled model with.",
        got=f"{source_of(drawing[0])}{more}",
        fix=f"{FIX}, or switch the drawing off (a scale of noise of 0)",
    )


def _seeded(program: Program, feed: Feed, seed: int) -> dict[str, Array]:
    torch.manual_seed(seed)
    return program.reference(feed)


def _argument(node: Node, name: str) -> Any:
    """The argument that an operator was given under a name of its schema, or the default."""
    assert isinstance(node.target, torch._ops.OpOverload)
    for index, argument in enumerate(node.target._schema.arguments):
        if argument.name == name:
            given = node.args[index : index + 1]
            return given[0] if given else node.kwargs.get(name, argument.default_value)
    return None
