"""Pictures whose headers promise what their data do not hold, and what is mistaken for another."""

from __future__ import annotations

import struct
import zlib

import pytest
from PIL import Image

from predictors.errors import InvalidRequest
from predictors.protocol.images.decode import decode_pixels
from predictors.settings import ImageLimits
from tests.http.pictures import chunk
from tests.protocol.images.test_decode import saved

LIMITS = ImageLimits()
SCENE = Image.new("RGB", (64, 64), (200, 30, 30))
JPEG, PROGRESSIVE = saved(SCENE, "JPEG"), saved(SCENE, "JPEG", progressive=True)
BMP, TGA = saved(SCENE, "BMP"), saved(SCENE, "TGA")


def png_header(width: int, height: int, colours: int = 2) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, colours, 0, 0, 0)
    data = chunk(b"IDAT", zlib.compress(b"\0\0" * 4))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + data + chunk(b"IEND", b"")


def jpeg_of(raw: bytes, width: int, height: int, frame: bytes = b"\xff\xc0") -> bytes:
    """The file with another size in its header."""
    at = raw.index(frame) + 5
    return raw[:at] + struct.pack(">HH", height, width) + raw[at + 4 :]


def file_type(*brands: bytes) -> bytes:
    body = b"ftyp" + brands[0] + b"\0\0\0\0" + b"".join(brands)
    return struct.pack(">I", len(body) + 4) + body + bytes(100)


def with_segment(marker: int, data: bytes) -> bytes:
    segment = b"\xff" + bytes([marker]) + struct.pack(">H", len(data) + 2) + data
    return JPEG[:2] + segment + JPEG[2:]


FRAME_BEYOND = b"," + struct.pack("<4HB", 9000, 9000, 9000, 9000, 0) + b"\2\2\x44\1\0;"
REFUSED = {
    "PNG, 3.6 gigapixels": (png_header(60000, 60000), "is 60000x60000 pixels; a side may"),
    "PNG, 100 megapixels": (png_header(10000, 10000), "is 10000x10000 pixels, 100000000 in all"),
    "PNG, 2^31 wide": (png_header(2**31 - 1, 1), "is 2147483647x1 pixels; a side may have"),
    "JPEG, 4.2 gigapixels": (
        jpeg_of(JPEG, 65000, 65000),
        "is damaged or cut short: a JPEG picture of 65000x65000 pixels with only",
    ),
    "JPEG, 49 megapixels": (
        jpeg_of(JPEG, 7000, 7000),
        "is damaged or cut short: a JPEG picture of 7000x7000 pixels with only",
    ),
    "progressive JPEG, 49 megapixels": (
        jpeg_of(PROGRESSIVE, 7000, 7000, b"\xff\xc2"),
        "is damaged or cut short: a JPEG picture of 7000x7000 pixels with only",
    ),
    "BMP, 3.6 gigapixels": (
        BMP[:18] + struct.pack("<ii", 60000, 60000) + BMP[26:],
        "is 60000x60000 pixels; a side may have",
    ),
    "GIF, a frame beyond the canvas": (
        b"GIF89a\x0a\0\x0a\0\x80\0\0" + bytes(6) + FRAME_BEYOND,
        "is 18000x18000 pixels",
    ),
    "PNG without its palette": (
        png_header(4, 4, colours=3),
        "is a PNG picture of palette colours without its palette",
    ),
    "HEIF of another codec": (file_type(b"mif1", b"miaf"), "is a HEIF picture that is neither"),
    "MP4": (file_type(b"isom", b"mp42"), "is an MP4 video"),
    "TGA": (TGA, "is no picture of a known kind"),
    "cursor": (b"\0\0\2\0\1\0" + bytes(60), "is a Windows cursor"),
}


@pytest.mark.parametrize(("file", "words"), REFUSED.values(), ids=REFUSED)
def test_a_picture_that_is_not_what_it_says_is_refused_by_name(file: bytes, words: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        decode_pixels(file, LIMITS, param="here")
    assert str(caught.value).startswith(f"here {words}"), caught.value


FLAT = Image.new("RGB", (4000, 3000))
TAKEN = {
    "a JFIF segment that is cut": with_segment(0xE0, b"JFIF\0"),
    "an Adobe segment that is cut": with_segment(0xEE, b"Adobe"),
    "flat": saved(FLAT.convert("L"), "JPEG", quality=1, optimize=True),
    "flat, progressive": saved(FLAT.convert("L"), "JPEG", quality=1, progressive=True),
    "flat, colours coarser": saved(FLAT, "JPEG", quality=1, subsampling=2, optimize=True),
}


@pytest.mark.parametrize("file", TAKEN.values(), ids=TAKEN)
def test_a_jpeg_with_little_data_or_damaged_segments_is_read(file: bytes) -> None:
    assert decode_pixels(file, LIMITS).width in {64, 4000}


def test_colours_of_a_jpeg_stay_when_a_damaged_segment_is_left_out() -> None:
    plain = bytes(decode_pixels(JPEG, LIMITS).memory.read())
    for file in (TAKEN["a JFIF segment that is cut"], TAKEN["an Adobe segment that is cut"]):
        assert bytes(decode_pixels(file, LIMITS).memory.read()) == plain
