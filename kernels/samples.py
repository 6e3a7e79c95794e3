"""What the samples of several kernels share."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

from sdk.kernels.spec import Case

ODD_VALUES = {
    "NaN": math.nan,
    "infinity": math.inf,
    "denormal": 1e-41,
    "large": 1e30,
    "tie": 0.5,
}


def odd_values(plain: Case) -> Iterator[Case]:
    """`plain` with values that are no usual ones: one in row 1 of its first tensor, many in row 8.

    That tensor is [rows, columns], with at least 9 rows and more than 64 columns.
    """
    x, *rest = plain.tensors
    assert x is not None
    for name, value in ODD_VALUES.items():
        odd = x.clone()
        odd[1, 3], odd[8, 64:] = value, value
        yield replace(plain, name=name, tensors=(odd, *rest))
