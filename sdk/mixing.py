"""Static precisions with some layers in float: as few as the budget needs.

Layers are ranked by what quantizing each alone does to the outputs. The budget's verdict is taken
to be monotone in k, the number of layers in float from the top of the ranking: doubling k until it
passes and bisecting below finds the least k in O(log k) builds. Then layers among these k that are
not needed go back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from sdk.building import Builder
from sdk.errors import ParityError
from sdk.evidence import Built
from sdk.target import STATIC

GIVE_BACK = 4  # builds spent on giving layers back
Attempt = Callable[[Sequence[str]], Built | None]


def gated(builder: Builder, precision: str, baseline: Built | None) -> Built:
    """The build at `precision`, within its budget; ParityError says what it loses.

    Where a static precision costs the caller's metric too much, layers go back to float; so they
    do where the engine strays from the program, for a value between two steps of a grid may go
    either way, and what such a step is to the outputs depends on the layers behind it.
    """
    settings, built, refusal = builder.settings, None, None
    mixable = precision in STATIC and settings.metric is not None and bool(builder.calibration)
    try:
        built = builder.measured(precision, baseline, keep_float=settings.keep_float)
    except ParityError as error:
        if not mixable:
            raise
        refusal = error
    if mixable and (built is None or not builder.within_budget(built)):
        built = _mixed(builder, precision, baseline) or built
    if built is None:
        assert refusal is not None
        raise refusal
    builder.gate_fidelity(built)
    return built


def _mixed(builder: Builder, precision: str, baseline: Built | None) -> Built | None:
    """The build with the fewest layers in float that passes its gates."""
    settings = builder.settings

    def attempt(layers: Sequence[str]) -> Built | None:
        keep = (*settings.keep_float, *layers)
        try:
            mixed = builder.measured(precision, baseline, keep_float=keep)
        except ParityError:  # another mixture may well be what its program computes
            return None
        if builder.within_budget(mixed):
            return mixed
        mixed.session.close()
        return None

    ranked = [layer for layer, _ in builder.layer_costs(precision)]
    with builder.mixing():
        return least_float(open_to_float(ranked, settings.keep_float), attempt)


def open_to_float(ranked: Sequence[str], fixed: Sequence[str]) -> list[str]:
    """The ranked layers that are not in float anyway."""
    return [layer for layer in ranked if layer not in fixed]


def least_float(ranked: Sequence[str], attempt: Attempt) -> Built | None:
    """The mixture with the fewest layers in float that passes; None if half do not suffice.

    `attempt(layers)` is the build with these in float, or None where it does not pass.
    """
    tried: dict[frozenset[str], Built | None] = {}

    def once(layers: Sequence[str]) -> Built | None:
        key = frozenset(layers)
        if key not in tried:
            tried[key] = attempt(layers)
        return tried[key]

    least = least_count(len(ranked) // 2, lambda k: once(ranked[:k]) is not None)
    return None if least is None else once(_given_back(list(ranked[:least]), once))


def least_count(most: int, check: Callable[[int], bool]) -> int | None:
    """The least k in 1..most with `check(k)`, which is monotone; None where there is none."""
    fails, passes = 0, 1
    while passes < most and not check(passes):
        fails, passes = passes, 2 * passes
    passes = min(passes, most)
    if passes <= fails or not check(passes):
        return None
    while passes - fails > 1:
        middle = (fails + passes) // 2
        if check(middle):
            passes = middle
        else:
            fails = middle
    return passes


def _given_back(layers: list[str], attempt: Attempt) -> list[str]:
    """Without those that are not needed, cheapest first; the last one is, or there were fewer."""
    for layer in reversed(layers[-1 - GIVE_BACK : -1]):
        without = [name for name in layers if name != layer]
        if attempt(without) is not None:
            layers = without
    return layers
