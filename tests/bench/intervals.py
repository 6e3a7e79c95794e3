"""A ratio of many rounds, and how sure it is."""

from __future__ import annotations

import numpy as np


def median_of(ratios: np.ndarray) -> tuple[float, float, float]:
    """The median with its 95 % interval by the bootstrap."""
    picks = np.random.default_rng(0).choice(ratios, (1000, len(ratios)))
    low, high = np.percentile(np.median(picks, axis=1), [2.5, 97.5])
    return float(np.median(ratios)), float(low), float(high)
