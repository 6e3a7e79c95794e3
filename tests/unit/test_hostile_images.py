"""Images that are broken or mean harm: refused with the SDK's error, soon, in little memory."""

from __future__ import annotations

import struct
import time
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from pictures import encoded, picture, pixels
from PIL import Image

from sdk.errors import InputError
from sdk.processor import FORMATS, ImageProcessor

RAW = ImageProcessor(size=(16, 24), scale=1.0)
SLENDER = [(1, 1), (1, 500), (500, 1), (1, 60_000), (60_000, 1), (3, 20_000), (20_000, 3)]


@pytest.mark.parametrize("shape", SLENDER)
@pytest.mark.parametrize("resize", [None, 64])
def test_slender_images_never_grow_beyond_the_bound(
    shape: tuple[int, int], resize: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A strip whose shorter side became 64 would be 64 x 3,840,000 pixels."""
    made = []
    whole = Image.Image.resize

    def resized(self: Image.Image, size: tuple[int, int], *options: Any) -> Image.Image:
        made.append(size[0] * size[1])
        return whole(self, size, *options)

    monkeypatch.setattr(Image.Image, "resize", resized)
    processor = ImageProcessor((32, 32), resize, scale=1.0, max_pixels=100_000)
    np.testing.assert_array_equal(processor([np.full(shape, 77, np.uint8)]), 77)
    assert max(made) <= 100_000


def test_a_strip_is_cut_where_the_whole_would_be() -> None:
    wave = np.tile((127 + 120 * np.sin(np.arange(3000) / 6)).astype(np.uint8), (10, 1))
    options: dict[str, Any] = {"size": (20, 20), "resize": 20, "mode": "L"}
    got = pixels(wave, **options, max_pixels=40_000)
    np.testing.assert_allclose(got, pixels(wave, **options), atol=1)
    assert got.std() > 10


JPEG = encoded(Image.fromarray(picture()), "JPEG")
PNG = encoded(Image.fromarray(picture()), "PNG")


@pytest.mark.parametrize(
    "data",
    [b"", b"\x00" * 100, b"hello, world\n" * 9, b"<svg xmlns='http://www.w3.org/2000/svg'/>",
     b"%PDF-1.7\n", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", JPEG[:-20], JPEG[:2],
     PNG[: len(PNG) // 2], PNG[:33], PNG[:40] + b"\x00" * 40 + PNG[80:]],
    ids=["empty", "zeros", "text", "svg", "pdf", "eps", "cut jpeg", "two bytes", "cut png",
         "header only", "broken png"],
)  # fmt: skip
def test_what_is_no_whole_image(data: bytes, tmp_path: Path) -> None:
    file = tmp_path / "image"
    file.write_bytes(data)
    for value in (data, file):
        with pytest.raises(InputError, match="cannot be decoded") as caught:
            RAW([value])
        assert caught.value.fix


def png(width: int, height: int, rows: bytes) -> bytes:
    """A PNG file of 8-bit gray with any header and any image data."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    )


def _zeros(count: int) -> bytes:
    """`count` zeros, compressed, without having them in memory."""
    packer = zlib.compressobj(9)
    parts = [packer.compress(bytes(1 << 20)) for _ in range(count >> 20)]
    return b"".join([*parts, packer.compress(bytes(count % (1 << 20))), packer.flush()])


@pytest.mark.parametrize(
    ("width", "height", "rows"),
    [(60_000, 60_000, b""), (2**31 - 1, 2**31 - 1, b""), (1, 2**31 - 1, b""),
     (12_000, 12_000, _zeros(12_001 * 12_000)), (9000, 8000, _zeros(9001 * 8000))],
    ids=["header", "largest header", "tall header", "144 megapixels", "72 megapixels"],
)  # fmt: skip
def test_decompression_bombs(width: int, height: int, rows: bytes) -> None:
    """Refused by the header: a real one of 140 kB would become 144 MB."""
    data = png(width, height, rows)
    tracemalloc.start()
    start = time.process_time()
    with pytest.raises(InputError, match="too large"):
        RAW([data])
    assert time.process_time() - start < 1
    assert tracemalloc.get_traced_memory()[1] < 8 << 20
    tracemalloc.stop()


def test_a_bomb_that_is_an_image_in_memory() -> None:
    with pytest.raises(InputError, match="too large"):
        ImageProcessor((4, 4), max_pixels=100)([picture()])


def test_a_huge_file_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "x.png").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(InputError, match="file is too large"):
        RAW([tmp_path / "x.png"])


@pytest.mark.parametrize(
    "value",
    [None, 3, 2.5, object(), ("a", "b"), np.zeros((4, 4)), np.zeros((4, 4), np.float32),
     np.float32(1), Image.new("RGB", (0, 4)), np.zeros((4, 4, 2), np.uint8),
     np.zeros((4, 4, 3, 1), np.uint8), np.zeros(4, np.uint8),
     np.zeros((0, 4, 3), np.uint8), np.zeros((4, 4), bool)],
)  # fmt: skip
def test_what_is_no_picture(value: object) -> None:
    with pytest.raises(InputError):
        RAW([value])


@pytest.mark.parametrize(
    "path", ["absent.png", "", "x" * 5000, "a\0b", "/", "/dev/zero", "http://x/y.png"]
)
def test_what_is_no_path(path: str) -> None:
    with pytest.raises(InputError) as caught:
        RAW([path])
    assert len(str(caught.value)) < 6000


SEEDS = [
    JPEG,
    PNG,
    encoded(Image.fromarray(picture()).convert("P"), "GIF"),
    encoded(Image.fromarray(picture()), "WEBP"),
    encoded(Image.fromarray(picture()), "BMP"),
    encoded(Image.fromarray(picture()), "PPM"),
]
EXIF = Image.Exif()
EXIF.update({0x0112: 6, 0x010E: "a picture", 0x010F: "camera"})
SEEDS += [encoded(Image.fromarray(picture()), form, exif=EXIF) for form in ("JPEG", "WEBP")]


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, of what it passes over
@settings(max_examples=300, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(
    st.sampled_from(SEEDS),
    st.lists(
        st.tuples(st.floats(0, 1, exclude_max=True), st.binary(max_size=4)), min_size=1, max_size=6
    ),
    st.floats(0.2, 1),
)
def test_broken_images_are_decoded_or_refused(
    seed: bytes, edits: list[tuple[float, bytes]], keep: float
) -> None:
    data = bytearray(seed)
    for place, new in edits:
        at = int(place**2 * len(data))  # headers are at the front
        data[at : at + len(new)] = new
    try:
        got = RAW([bytes(data[: max(1, int(keep * len(data)))] if keep < 0.9 else data)])
    except InputError:
        return
    assert got.shape == (1, 3, 16, 24)
    assert np.isfinite(got).all()


def test_formats_that_run_programs_are_never_opened() -> None:
    """Pillow hands EPS to Ghostscript."""
    assert not {"EPS", "PDF", "FPX", "MSP", "WMF"} & set(FORMATS)
