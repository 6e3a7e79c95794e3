"""SSLD's choice of unlabelled images (arXiv 2103.05959, section 3.2).

Copies of the test images are dropped; then, for each class that the teacher predicts, the images of
which it is surest are kept.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[Any]
Floats = NDArray[np.float32]
Indices = NDArray[np.int64]

THUMBNAIL = 8


def without_copies(pool: Pixels, test: Pixels, *, threshold: float = 0.999) -> Indices:
    """Indices of the pool's pictures that are no near-copies of a test picture.

    Pictures are uint8 of N x H x W x 3. The paper matches SIFT features; for small pictures we take
    the correlation of thumbnails instead (our reading), and call more than `threshold` a copy.
    """
    against = _thumbnails(test)
    worst = [
        (_thumbnails(pool[start : start + 4096]) @ against.T).max(axis=1)
        for start in range(0, len(pool), 4096)
    ]
    return np.flatnonzero(np.concatenate(worst) <= threshold)


def surest(probabilities: Floats, per_class: int) -> Indices:
    """Indices of the `per_class` highest-scoring rows of each predicted class, in order.

    probabilities: N x classes, the teacher's. Classes with fewer rows keep all of theirs.
    """
    predicted, score = probabilities.argmax(1), probabilities.max(1)
    kept = [
        group[np.argsort(-score[group], kind="stable")[:per_class]]
        for group in (np.flatnonzero(predicted == c) for c in range(probabilities.shape[1]))
    ]
    return np.sort(np.concatenate(kept))


def _thumbnails(pixels: Pixels) -> Floats:
    """Mean-free unit vectors of small averaged pictures: N x (8 * 8 * 3)."""
    count, height, width, channels = pixels.shape
    rows, columns = height // THUMBNAIL, width // THUMBNAIL
    cut = pixels[:, : rows * THUMBNAIL, : columns * THUMBNAIL].astype(np.float32)
    blocks = cut.reshape(count, THUMBNAIL, rows, THUMBNAIL, columns, channels)
    flat = blocks.mean((2, 4)).reshape(count, -1)
    flat -= flat.mean(1, keepdims=True)
    return np.asarray(flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-6))
