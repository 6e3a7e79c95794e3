"""Pictures to process, and their pixels."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from PIL import Image

from sdk.processor import ImageProcessor


def picture(height: int = 16, width: int = 24, channels: int = 3) -> Any:
    """uint8 noise, always the same."""
    shape = (height, width, channels)[: 3 if channels > 1 else 2]
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def encoded(image: Image.Image, form: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def pixels(value: Any, **settings: Any) -> Any:
    """H x W x C of one image, at its own size, unscaled."""
    options: dict[str, Any] = {"size": (16, 24), "scale": 1.0, "layout": "NHWC"} | settings
    return ImageProcessor(**options)([value])[0]
