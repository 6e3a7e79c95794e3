"""Images to tensors, and scores to labels, against computations of our own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pictures import encoded, picture, pixels
from PIL import Image

from sdk.errors import CorruptArtifactError, EngineError, InputError
from sdk.processor import Classification, ImageProcessor, Processor
from sdk.signature import Dim, Signature, TensorSpec

RAW = ImageProcessor(size=(16, 24), scale=1.0)
FORMATS_EXACT = ("PNG", "BMP", "TIFF", "PPM", "WEBP")


@pytest.mark.parametrize("form", FORMATS_EXACT)
def test_lossless_formats_give_their_pixels(form: str) -> None:
    options = {"lossless": True} if form == "WEBP" else {}
    data = encoded(Image.fromarray(picture()), form, **options)
    for value in (data, bytearray(data), memoryview(data)):
        np.testing.assert_array_equal(pixels(value), picture())


def test_an_image_may_come_in_any_shape(tmp_path: Path) -> None:
    image, file = Image.fromarray(picture()), tmp_path / "photo ü.png"
    image.save(file)
    for value in (
        str(file),
        file,
        image,
        picture(),
        picture()[::-1][::-1],
        np.asfortranarray(picture()),
    ):
        np.testing.assert_array_equal(pixels(value), picture())


def test_jpeg() -> None:
    smooth = np.tile(np.linspace(0, 255, 24).astype(np.uint8)[None, :, None], (16, 1, 3))
    data = encoded(Image.fromarray(smooth), "JPEG", quality=95)
    np.testing.assert_allclose(pixels(data), smooth, atol=4)


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_normalise_and_lay_out(layout: str) -> None:
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)
    processor = ImageProcessor((16, 24), mean=mean, std=std, layout=layout)
    got = processor([picture(), picture()[::-1]])
    want = (np.stack([picture(), picture()[::-1]]) / 255 - mean) / std
    want = want.transpose(0, 3, 1, 2) if layout == "NCHW" else want
    assert got.dtype == np.float32
    assert got.flags.c_contiguous
    assert got.shape[1:] == processor.shape
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


def area(image: Any, size: tuple[int, int]) -> Any:
    """Bilinear reduction with support, written from its definition: a triangle over the source."""
    for axis, wanted in enumerate(size):
        have = image.shape[axis]
        scale = have / wanted
        support = max(scale, 1.0)
        centres = (np.arange(wanted) + 0.5) * scale
        distance = np.abs(np.arange(have)[None, :] + 0.5 - centres[:, None]) / support
        weights = np.clip(1 - distance, 0, None)
        weights /= weights.sum(1, keepdims=True)
        image = np.moveaxis(np.tensordot(weights, image, (1, axis)), 0, axis)
    return image


@pytest.mark.parametrize("size", [(8, 12), (5, 7), (20, 40), (16, 9)])
def test_resize_the_whole(size: tuple[int, int]) -> None:
    got = pixels(picture(), size=size)
    np.testing.assert_allclose(got, area(picture().astype(float), size), atol=1.01)


@pytest.mark.parametrize("shape", [(32, 48), (48, 32), (33, 77), (20, 20)])
@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic", "lanczos"])
def test_resize_and_cut_is_one_after_the_other(shape: tuple[int, int], interpolation: str) -> None:
    """What torchvision's Resize and CenterCrop do to an image, by Pillow itself."""
    image = Image.fromarray(picture(*shape))
    short = min(image.size)
    scaled = [round(side * 20 / short) for side in image.size]
    whole = image.resize((scaled[0], scaled[1]), Image.Resampling[interpolation.upper()])
    left, top = (scaled[0] - 16) // 2, (scaled[1] - 12) // 2
    want = np.asarray(whole.crop((left, top, left + 16, top + 12)))
    got = pixels(image, size=(12, 16), resize=20, interpolation=interpolation)
    np.testing.assert_array_equal(got, want)


def test_a_camera_held_any_way() -> None:
    """EXIF orientations by their definition: where row 0 and column 0 are."""
    upright = picture(8, 6)
    stored = {
        1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1],
        5: upright.transpose(1, 0, 2), 6: np.rot90(upright, 1),
        7: np.rot90(upright.transpose(1, 0, 2), 2), 8: np.rot90(upright, -1),
    }  # fmt: skip
    for orientation, array in stored.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        for form in ("PNG", "TIFF"):
            image = Image.fromarray(np.ascontiguousarray(array))
            got = pixels(encoded(image, form, exif=exif), size=(8, 6))
            np.testing.assert_array_equal(got, upright, err_msg=f"{form}, {orientation}")


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_orientation_that_is_none(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(Image.fromarray(picture()), "PNG", exif=exif)
    np.testing.assert_array_equal(pixels(data), picture())


def test_gray_becomes_three_equal_channels_and_colour_becomes_luma() -> None:
    gray = picture(channels=1)
    np.testing.assert_array_equal(pixels(gray), np.repeat(gray[:, :, None], 3, 2))
    np.testing.assert_array_equal(pixels(gray[:, :, None], mode="L"), gray[:, :, None])
    luma = picture() @ [0.299, 0.587, 0.114]
    np.testing.assert_allclose(pixels(picture(), mode="L")[:, :, 0], luma, atol=1)


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled_and_not_clipped(form: str) -> None:
    deep = np.linspace(0, 65535, 16 * 24).reshape(16, 24).astype(np.uint16)
    got = pixels(encoded(Image.fromarray(deep), form), mode="L")[:, :, 0]
    np.testing.assert_allclose(got, deep / 257, atol=0.51)


def test_alpha_is_dropped() -> None:
    data = encoded(Image.fromarray(picture(channels=4)), "PNG")
    np.testing.assert_array_equal(pixels(data), picture(channels=4)[:, :, :3])


def test_a_palette_is_looked_up() -> None:
    palette = Image.fromarray(picture()).quantize(64)
    np.testing.assert_array_equal(
        pixels(encoded(palette, "PNG")), np.asarray(palette.convert("RGB"))
    )


def test_cmyk_jpeg() -> None:
    """Red ink is no cyan, all magenta and yellow: red, whatever Adobe inverts."""
    inks = np.zeros((16, 24, 4), np.uint8)
    inks[:, :, 1:3] = 255
    got = pixels(encoded(Image.fromarray(inks, "CMYK"), "JPEG", quality=95))
    np.testing.assert_allclose(got, np.broadcast_to([255, 0, 0], got.shape), atol=6)


def test_one_bit() -> None:
    image = Image.fromarray(picture(channels=1)).convert("1")
    np.testing.assert_array_equal(
        pixels(encoded(image, "PNG"), mode="L")[:, :, 0], np.asarray(image) * 255
    )


def test_an_animation_is_its_first_frame() -> None:
    frames = [Image.new("P", (24, 16), colour) for colour in (0, 1)]
    for frame in frames:
        frame.putpalette([255, 0, 0, 0, 255, 0])
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    np.testing.assert_array_equal(pixels(data)[0, 0], [255, 0, 0])


@pytest.mark.parametrize(("mode", "dtype"), [("F", np.float32), ("I", np.int32)])
def test_pixels_of_no_known_range(mode: str, dtype: Any) -> None:
    image = Image.fromarray(np.ones((16, 24), dtype))
    assert image.mode == mode
    with pytest.raises(InputError, match="no known range"):
        RAW([image])


@pytest.mark.parametrize(
    "change",
    [{"size": (0, 4)}, {"size": (4,)}, {"size": (4, 4, 4)}, {"size": (10**6, 4)}, {"size": ()},
     {"resize": 2}, {"resize": 0}, {"resize": 10**6}, {"mode": "CMYK"}, {"mode": ""},
     {"interpolation": "magic"}, {"layout": "CHW"}, {"std": (0.0,)}, {"std": (1e-40,)},
     {"std": (float("nan"),)}, {"mean": (float("inf"),)}, {"mean": (1e300,)}, {"mean": (1.0, 1.0)},
     {"mean": ()}, {"scale": float("nan")}, {"scale": 1e40}],
)  # fmt: skip
def test_unusable_settings(change: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="not usable"):
        ImageProcessor(**{"size": (4, 4)} | change)
    good = Processor("x", ImageProcessor((4, 4))).to_json()
    bad = json.loads(json.dumps(good | {"pre": good["pre"] | change}))
    with pytest.raises(CorruptArtifactError):
        Processor.from_json(bad)


def test_json_round_trip() -> None:
    pre = ImageProcessor((4, 5), 9, "L", "bicubic", 0.5, (0.25,), (2.0,), "NHWC", 1000)
    post = Classification(("a", "ü"), 2, "probabilities")
    for processor in (Processor("x", pre, "y", post, finite=False), Processor("x")):
        assert Processor.from_json(json.loads(json.dumps(processor.to_json()))) == processor


def test_labels_of_logits() -> None:
    scores = np.array([[1.0, 3.0, 2.0], [0.0, -np.inf, 0.0]], np.float32)
    first, second = Classification(("a", "b", "c"), top=2)(scores)
    total = np.exp([1.0, 3.0, 2.0]).sum()
    assert [label.name for label in first] == ["b", "c"]
    assert [label.index for label in first] == [1, 2]
    assert first[0].probability == pytest.approx(np.exp(3.0) / total)
    assert [(label.name, label.probability) for label in second] == [("a", 0.5), ("c", 0.5)]
    assert str(second[0]) == "a (50.0%)"


def test_large_logits_do_not_overflow() -> None:
    ((label, *_),) = Classification(("a", "b"))(np.array([[1e30, -1e30]], np.float32))
    assert (label.name, label.probability) == ("a", 1.0)


def test_probabilities_are_kept() -> None:
    ((label,),) = Classification(("a", "b"), top=1, scores="probabilities")(np.array([[0.3, 0.7]]))
    assert label.probability == 0.7


@pytest.mark.parametrize("scores", [[np.nan, 0.0], [np.inf, 0.0], [-np.inf, -np.inf]])
def test_scores_without_sense(scores: list[float]) -> None:
    with pytest.raises(EngineError, match="NaN or infinity"):
        Classification(("a", "b"))(np.array([scores], np.float32))


@pytest.mark.parametrize("shape", [(2,), (1, 3), (1, 2, 1)])
def test_scores_of_another_shape(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="one score for each label"):
        Classification(("a", "b"))(np.zeros(shape, np.float32))


@pytest.mark.parametrize("change", [{"labels": ()}, {"top": 0}, {"scores": "magic"}])
def test_unusable_classifications(change: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="not usable"):
        Classification(**{"labels": ("a",)} | change)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_finite(bad: float) -> None:
    array = np.ones((2, 3), np.float32)
    Processor("x").check_finite(array)
    Processor("x").check_finite(np.full(3, 3e38, np.float32))  # whose sum is infinite
    Processor("x").check_finite(np.ones(3, np.int64))
    array[1, 1] = bad
    Processor("x", finite=False).check_finite(array)
    with pytest.raises(InputError, match="NaN or infinity") as caught:
        Processor("x").check_finite(array)
    assert caught.value.got == "1 of 6 values"


BATCH = Dim("batch", 1, 1, 8)
SIGNATURE = Signature(
    (TensorSpec("x", "float32", (BATCH, 3, 4, 4)),), (TensorSpec("y", "float32", (BATCH, 2)),)
)
PRE, POST = ImageProcessor((4, 4)), Classification(("a", "b"))


def test_processors_that_fit() -> None:
    Processor("x", PRE, "y", POST).check(SIGNATURE)
    Processor("x").check(SIGNATURE)


@pytest.mark.parametrize(
    "processor",
    [
        Processor("z", PRE),
        Processor("x", PRE, "z"),
        Processor("x", ImageProcessor((4, 5))),
        Processor("x", ImageProcessor((4, 4), layout="NHWC")),
        Processor("x", ImageProcessor((4, 4), mode="L")),
        Processor("x", PRE, None, POST),
        Processor("x", PRE, "y", Classification(("a", "b", "c"))),
    ],
    ids=["input", "output", "size", "layout", "mode", "labels of nothing", "labels"],
)
def test_processors_that_do_not_fit(processor: Processor) -> None:
    with pytest.raises(InputError):
        processor.check(SIGNATURE)


@pytest.mark.parametrize("shape", [(), (3, 4, 4), (0, 3, 4, 4)])
def test_inputs_that_take_no_images(shape: tuple[int, ...]) -> None:
    signature = Signature((TensorSpec("x", "float32", shape),), ())
    with pytest.raises(InputError):
        Processor("x", PRE).check(signature)
