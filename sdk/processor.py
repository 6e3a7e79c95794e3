"""What an artifact declares about raw input and about its outputs: data, never code.

`predict` turns an image file, its bytes or a picture into the model's input with `ImageProcessor`,
and the model's output into labels with `Classification`. Both are stored in `processor.json`.
"""

from __future__ import annotations

import io
import math
import struct
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sdk.errors import EngineError, InputError
from sdk.extras import require
from sdk.signature import Array, Signature, fits
from sdk.structure import from_json, to_json

if TYPE_CHECKING:
    from PIL.Image import Image

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
MODES = {"RGB": 3, "L": 1}
LAYOUTS = ("NCHW", "NHWC")
INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos")
ORIENTATION = 0x0112  # EXIF tag
TURNS = {2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE",
         6: "ROTATE_270", 7: "TRANSVERSE", 8: "ROTATE_90"}  # fmt: skip
MAX_FILE_BYTES = 256 << 20
# What Pillow's readers raise on broken files, by experiment.
BROKEN = (OSError, SyntaxError, ValueError, EOFError, TypeError, AttributeError, LookupError,
          ArithmeticError, struct.error)  # fmt: skip
MAX_SIDE = 1 << 14
MAX_SETTING = 1e9  # pixels stay far within float32


@dataclass(frozen=True, slots=True)
class ImageProcessor:
    """Decode, resize, crop, normalise, lay out: images to one float32 batch.

    An image is a path, encoded bytes, a PIL image, or a uint8 array of height x width (x channels).
    The shorter side is resized to `resize` pixels, then the centre of `size` (height, width) is cut
    out; with `resize=None` the whole image is resized to `size`. Pixels become
    `(pixel * scale - mean) / std`, with `mean` and `std` per channel. A camera's EXIF rotation is
    undone first. Images of more than `max_pixels` are refused before they are decoded.
    """

    size: tuple[int, ...]
    resize: int | None = None
    mode: str = "RGB"
    interpolation: str = "bilinear"
    scale: float = 1 / 255
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    layout: str = "NCHW"
    max_pixels: int = 64_000_000

    def __post_init__(self) -> None:
        channels = MODES.get(self.mode, 0)
        usable = (
            len(self.size) == 2
            and min(self.size) >= 1
            and max(self.size) <= (MAX_SIDE if self.resize is None else self.resize) <= MAX_SIDE
            and self.mode in MODES
            and self.interpolation in INTERPOLATIONS
            and self.layout in LAYOUTS
            and len(self.mean) in (1, channels)
            and len(self.std) in (1, channels)
            and all(abs(value) <= MAX_SETTING for value in (self.scale, *self.mean, *self.std))
            and all(abs(value) >= 1 / MAX_SETTING for value in self.std)
        )
        if not usable:
            raise InputError(
                "The image processor's settings are not usable.",
                expected=f"size=(height, width), resize >= size or None, both at most {MAX_SIDE}, "
                f"mode in {tuple(MODES)}, "
                f"interpolation in {INTERPOLATIONS}, layout in {LAYOUTS}, one mean and one std for "
                "each channel, no std of 0",
                got=self,
            )

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one processed image: C x H x W, or H x W x C."""
        channels = MODES[self.mode]
        return (channels, *self.size) if self.layout == "NCHW" else (*self.size, channels)

    def __call__(self, images: Sequence[Any]) -> Array:
        """float32 of N x C x H x W, or N x H x W x C."""
        pixels = np.stack([self._pixels(image) for image in images]).astype(np.float32)
        mean, std = np.asarray(self.mean, np.float32), np.asarray(self.std, np.float32)
        batch = (pixels * np.float32(self.scale) - mean) / std
        return np.ascontiguousarray(batch.transpose(0, 3, 1, 2) if self.layout == "NCHW" else batch)

    def _pixels(self, value: Any) -> Array:
        """uint8 of H x W x C at the wanted size."""
        with _decoding(value), _source(value) as source:
            image = self._resized(_in_bytes(_upright(self._open(source))).convert(self.mode))
            pixels = np.asarray(image)
        return pixels if pixels.ndim == 3 else pixels[:, :, None]

    def _open(self, value: Any) -> Image:
        """A PIL image whose header was read and whose size is allowed."""
        pil = require("PIL.Image", purpose="Decoding images")
        if isinstance(value, pil.Image):
            image = value
        elif isinstance(value, np.ndarray):
            image = pil.fromarray(_checked_picture(value))
        else:
            image = pil.open(value, formats=FORMATS)
        if not 0 < image.width * image.height <= self.max_pixels:
            raise InputError(
                f"The image is {'too large' if image.width and image.height else 'empty'}.",
                expected=f"at most {self.max_pixels} pixels",
                got=f"{image.width} x {image.height}",
                fix="scale it down, or compile with a larger ImageProcessor.max_pixels",
            )
        return image  # type: ignore[no-any-return]

    def _resized(self, image: Image) -> Image:
        pil = require("PIL.Image", purpose="Resizing images")
        method = pil.Resampling[self.interpolation.upper()]
        height, width = self.size
        if self.resize is None:
            return image.resize((width, height), method)
        short = min(image.size)
        scaled = [max(1, round(side * self.resize / short)) for side in image.size]
        left, top = (scaled[0] - width) // 2, (scaled[1] - height) // 2
        if scaled[0] * scaled[1] > self.max_pixels:
            return self._cut_strip(image, scaled, left, top, method)
        image = image.resize((scaled[0], scaled[1]), method)
        return image.crop((left, top, left + width, top + height))

    def _cut_strip(
        self, image: Image, scaled: Sequence[int], left: int, top: int, method: Any
    ) -> Image:
        """Resize no more than the wanted part, where the whole would not fit into memory."""
        height, width = self.size
        x, y = image.width / scaled[0], image.height / scaled[1]
        right, bottom = min((left + width) * x, image.width), min((top + height) * y, image.height)
        return image.resize((width, height), method, (left * x, top * y, right, bottom))


@dataclass(frozen=True, slots=True)
class Label:
    """One class with its probability."""

    name: str
    index: int
    probability: float

    def __str__(self) -> str:
        return f"{self.name} ({self.probability:.1%})"


@dataclass(frozen=True, slots=True)
class Classification:
    """Scores of N x classes to the `top` labels of each row, best first.

    `scores` says what the model gives: `logits` go through a softmax, `probabilities` are kept.
    """

    labels: tuple[str, ...]
    top: int = 5
    scores: str = "logits"

    def __post_init__(self) -> None:
        if not self.labels or self.top < 1 or self.scores not in ("logits", "probabilities"):
            raise InputError(
                "The classification's settings are not usable.",
                expected="labels, top >= 1, scores of 'logits' or 'probabilities'",
                got=f"{len(self.labels)} labels, top={self.top}, scores={self.scores!r}",
            )

    def __call__(self, scores: Array) -> list[list[Label]]:
        """One list of labels per row."""
        if scores.ndim != 2 or scores.shape[1] != len(self.labels):
            raise InputError(
                "The output does not have one score for each label.",
                expected=f"N x {len(self.labels)}",
                got=list(scores.shape),
            )
        values = scores.astype(np.float64)
        if self.scores == "logits":
            with np.errstate(invalid="ignore"):
                values = np.exp(values - values.max(axis=1, keepdims=True))
                values /= values.sum(axis=1, keepdims=True)
        if not np.isfinite(values).all():
            raise EngineError(
                "The model's scores have NaN or infinity.",
                fix="look at the input; on a device of lower precision, at overflow",
            )
        best = np.argsort(-values, axis=1, kind="stable")[:, : self.top]
        return [
            [Label(self.labels[i], int(i), float(row[i])) for i in order]
            for row, order in zip(values, best, strict=True)
        ]


@dataclass(frozen=True, slots=True)
class Processor:
    """`pre` makes the input named `input`; `post` reads the output named `output`.

    With `finite` an input array with NaN or infinity is refused before the model runs.
    """

    input: str
    pre: ImageProcessor | None = None
    output: str | None = None
    post: Classification | None = None
    finite: bool = True

    def check(self, signature: Signature) -> None:
        """Raise InputError unless the signature has the named input and output, and they fit."""
        self._check_names(signature)
        if self.pre is not None:
            (spec,) = (spec for spec in signature.inputs if spec.name == self.input)
            batch = spec.shape[:1] != (0,)
            if not batch or spec.dtype != "float32" or not fits(self.pre.shape, spec.shape[1:], {}):
                raise InputError(
                    f"The processor does not make what the input {spec.name!r} takes.",
                    expected=spec,
                    got=f"float32[N, {', '.join(map(str, self.pre.shape))}]",
                    fix="change the processor's size, mode or layout",
                )
        if self.post is not None:
            self._check_labels(self.post, signature)

    def _check_labels(self, post: Classification, signature: Signature) -> None:
        shapes = [spec.shape for spec in signature.outputs if spec.name == self.output]
        classes = shapes[0][-1] if shapes and len(shapes[0]) == 2 else None
        if classes is None or (isinstance(classes, int) and classes != len(post.labels)):
            raise InputError(
                "The processor's labels need an output with one score for each.",
                expected=f"output='name' of an output of N x {len(post.labels)}",
                got=", ".join(f"{spec.name}: {spec}" for spec in signature.outputs),
            )

    def _check_names(self, signature: Signature) -> None:
        for role, name, specs in (
            ("input", self.input, signature.inputs),
            ("output", self.output, signature.outputs),
        ):
            known = [spec.name for spec in specs]
            if name is not None and name not in known:
                raise InputError(
                    f"The processor names the {role} {name!r}, which the model does not have.",
                    expected=f"one of {', '.join(known)}",
                    got=repr(name),
                )

    def check_finite(self, array: Array) -> None:
        """Raise InputError where NaN or infinity is forbidden and `array` has some."""
        if not self.finite or array.dtype.kind != "f":
            return
        # one sum is enough in the good case: NaN and infinity both survive it
        with np.errstate(over="ignore", invalid="ignore"):
            if math.isfinite(array.sum()) or np.isfinite(array).all():
                return
        raise InputError(
            f"The input {self.input!r} has NaN or infinity, which its processor forbids.",
            expected="finite numbers",
            got=f"{int((~np.isfinite(array)).sum())} of {array.size} values",
            fix="look at where the input comes from, or compile with Processor(finite=False)",
        )

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return dict(to_json(self))

    @classmethod
    def from_json(cls, data: object) -> Processor:
        """The inverse of `to_json`; CorruptArtifactError where the data is not one."""
        return from_json(cls, data, "processor")


def _source(value: Any) -> AbstractContextManager[Any]:
    """What Pillow reads, to be closed after: an open file, or the image itself."""
    pil = require("PIL.Image", purpose="Decoding images")
    if isinstance(value, np.ndarray | pil.Image):
        return nullcontext(value)
    if isinstance(value, bytes | bytearray | memoryview):
        return io.BytesIO(value)
    if not isinstance(value, str | Path):
        raise InputError(
            "The input is not an image.",
            expected="a path, encoded bytes, a PIL image or a uint8 array",
            got=type(value).__name__,
        )
    path = Path(value)
    if not path.is_file():
        raise InputError(f"There is no image file {str(value)!r}.", fix="check the path")
    if path.stat().st_size > MAX_FILE_BYTES:
        raise InputError(
            "The image file is too large.",
            expected=f"at most {MAX_FILE_BYTES} bytes",
            got=path.stat().st_size,
        )
    return path.open("rb")


def _checked_picture(array: Array) -> Array:
    channels = array.shape[2:] or (1,)
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or channels[0] not in (1, 3, 4):
        raise InputError(
            "The array is not a picture.",
            expected="uint8 of height x width, or height x width x 1, 3 or 4 channels",
            got=f"{array.dtype}{list(array.shape)}",
        )
    return array[:, :, 0] if channels == (1,) and array.ndim == 3 else array


def _upright(image: Image) -> Image:
    """The image as its camera held it. ImageOps.exif_transpose trips over other tags' errors."""
    pil = require("PIL.Image", purpose="Decoding images")
    image.load()  # which turns a TIFF already
    turn = TURNS.get(image.getexif().get(ORIENTATION, 1))
    return image if turn is None else image.transpose(pil.Transpose[turn])


def _in_bytes(image: Image) -> Image:
    """The image with 8 bits a channel. Pillow's own conversion clips 16 bits to white."""
    if image.mode.startswith("I;16"):
        pil = require("PIL.Image", purpose="Decoding images")
        pixels = np.rint(np.asarray(image) / 257).astype(np.uint8)
        return pil.fromarray(pixels)  # type: ignore[no-any-return]
    if image.mode in ("I", "F"):
        raise InputError(
            "The image's pixels have no known range.",
            expected="8 or 16 bits a channel",
            got=f"mode {image.mode!r}",
            fix="scale it to 8 bits first",
        )
    return image


@contextmanager
def _decoding(value: Any) -> Iterator[None]:
    """The one place where Pillow's exceptions become the SDK's."""
    pil = require("PIL.Image", purpose="Decoding images")
    name = str(value) if isinstance(value, str | Path) else f"the {type(value).__name__} given"
    try:
        yield
    except (pil.DecompressionBombError, pil.DecompressionBombWarning) as error:
        raise InputError("The image is too large.", got=str(error), fix="scale it down") from error
    except BROKEN as error:
        raise InputError(
            "The image cannot be decoded.",
            expected=f"a whole image of a format among {', '.join(FORMATS)}",
            got=f"{name[-200:]}: {error}",
            fix="check that the file is complete and is an image",
        ) from error
