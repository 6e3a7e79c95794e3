"""The image processor of a Hugging Face folder as an `sdk.Processor`, where it is a plain one.

Plain is: resize, crop the centre, rescale, normalise. Whatever else one is told to do (padding,
swapped channels, sizes that depend on the picture) makes it none, with the reason.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdk.compilers.huggingface_files import read_json
from sdk.errors import InputError
from sdk.processor import Classification, ImageProcessor, Processor

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FILE = "preprocessor_config.json"
# Pillow's numbers, which the files have.
RESAMPLING = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}
STEPS = ("do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_convert_rgb")


class NotPlainError(Exception):
    """Why an image processor cannot be declared as data."""


def processor_of(
    folder: Path | None, model: PreTrainedModel, inputs: Any
) -> tuple[Processor | None, str | None]:
    """The processor for raw images, or why there is none; neither where the folder has no file."""
    if folder is None or model.main_input_name != "pixel_values":
        return None, None
    settings = read_json(folder, FILE)
    if not settings:
        return None, f"the folder has no {FILE}"
    try:
        pre = _image_processor(settings)
        _check_size(pre, inputs)
    except (NotPlainError, InputError, TypeError, ValueError) as error:
        return None, str(error).splitlines()[0]
    labels = _labels(model)
    output = "logits" if labels is not None else None
    return Processor("pixel_values", pre, output, labels), None


def _check_size(pre: ImageProcessor, inputs: Any) -> None:
    example = inputs.get("pixel_values") if isinstance(inputs, Mapping) else inputs
    shape = tuple(getattr(example, "shape", ()))[1:]
    if shape and shape != pre.shape:
        raise NotPlainError(f"it makes other pictures, {pre.shape}, than the inputs are, {shape}")


def _image_processor(settings: Mapping[str, Any]) -> ImageProcessor:
    kind = str(settings.get("image_processor_type", settings.get("feature_extractor_type", "")))
    others = sorted(k for k, v in settings.items() if k.startswith("do_") and v and k not in STEPS)
    if others:
        raise NotPlainError(f"{kind} does more than resize and normalise: {', '.join(others)}")
    if not (settings.get("do_resize") and settings.get("do_rescale", True)):
        raise NotPlainError(f"{kind} does not resize or rescale")
    if settings.get("rescale_offset"):
        raise NotPlainError(f"{kind} shifts the pixels by rescale_offset")
    size, resize = _sizes(kind, settings)
    normal = bool(settings.get("do_normalize"))
    return ImageProcessor(
        size=size,
        resize=resize,
        interpolation=_interpolation(settings),
        scale=float(settings.get("rescale_factor", 1 / 255)),
        mean=tuple(map(float, settings["image_mean"])) if normal else (0.0,),
        std=tuple(map(float, settings["image_std"])) if normal else (1.0,),
    )


def _sizes(kind: str, settings: Mapping[str, Any]) -> tuple[tuple[int, int], int | None]:
    """The final height and width, and the shorter side before the crop, if there is one."""
    size = settings.get("size")
    size = {"height": size, "width": size} if isinstance(size, int) else dict(size or {})
    crop = _square(settings.get("crop_size")) if settings.get("do_center_crop") else None
    shortest = size.get("shortest_edge")
    if {"height", "width"} <= size.keys():
        whole = (int(size["height"]), int(size["width"]))
        if crop not in (None, whole):
            raise NotPlainError(f"{kind} crops {crop} out of a picture squeezed to {whole}")
        return whole, None
    if isinstance(shortest, int) and "crop_pct" in settings:
        return _by_percentage(shortest, float(settings["crop_pct"] or 224 / 256))
    if isinstance(shortest, int) and crop is not None and "longest_edge" not in size:
        return crop, shortest
    raise NotPlainError(f"the size that {kind} makes depends on the picture")


def _by_percentage(side: int, share: float) -> tuple[tuple[int, int], int | None]:
    """ConvNeXt's: a small side is the centre of a larger picture, a large one the whole of it."""
    return (side, side), int(side / share) if side < 384 else None


def _square(size: Any) -> tuple[int, int] | None:
    if isinstance(size, int):
        return size, size
    if isinstance(size, Mapping) and {"height", "width"} <= size.keys():
        return int(size["height"]), int(size["width"])
    return None


def _interpolation(settings: Mapping[str, Any]) -> str:
    number = settings.get("resample", 2)
    if number not in RESAMPLING:
        raise NotPlainError(f"it resizes by Pillow's method {number}")
    return RESAMPLING[number]


def _labels(model: PreTrainedModel) -> Classification | None:
    if not type(model).__name__.endswith("ForImageClassification"):
        return None
    names: Mapping[Any, str] = model.config.id2label or {}
    ordered = tuple(str(names[index]) for index in sorted(names))
    return Classification(ordered, top=min(5, len(ordered))) if ordered else None
