"""Numbers of 64 bits in a BigTIFF and in EXIF data: no offset and no value is an error of ours."""

from __future__ import annotations

import struct
import zlib
from io import BytesIO

import pytest
from PIL import Image

from predictors.errors import InvalidRequest
from predictors.protocol.images.decode import decode_pixels
from predictors.protocol.images.memory import decoding_bytes
from predictors.protocol.images.tiff import clean_tiff, exif_orientation, tiff_size
from predictors.settings import ImageLimits
from tests.http.pictures import chunk, png_of

LIMITS = ImageLimits()
FAR = [2**32 - 1, 2**32, 2**63 - 9, 2**63 - 1, 2**63, 2**64 - 1]
GRAY = {256: 16, 257: 16, 258: 8, 259: 1, 262: 1, 273: 16, 277: 1, 278: 16, 279: 256}
TILED = GRAY | {322: 16, 323: 16, 324: 16, 325: 256}
LONG8, RATIONAL = 16, 5


def big_tiff(
    tags: dict[int, int], *, directory: int | None = None, following: int = 0, order: str = "<",
    counts: dict[int, int] | None = None,
) -> bytes:  # fmt: skip
    """A gray BigTIFF of 16x16 pixels. Every tag has one number of 64 bits, or `counts` of them that
    lie where its number says."""
    head = b"II+\0" if order == "<" else b"MM\0+"
    start = 16 + 256 if directory is None else directory
    head += struct.pack(order + "HHQ", 8, 0, start)
    entries = [
        struct.pack(order + "HHQQ", tag, LONG8, (counts or {}).get(tag, 1), value)
        for tag, value in sorted(tags.items())
    ]
    count = struct.pack(order + "Q", len(entries))
    return b"".join([head, bytes(256), count, *entries, struct.pack(order + "Q", following)])


def orientation_at(offset: int, order: str = "<") -> bytes:
    """EXIF data whose directory is at `offset`."""
    return (b"II+\0" if order == "<" else b"MM\0+") + struct.pack(order + "HHQ", 8, 0, offset)


def refused(raw: bytes) -> str:
    assert decoding_bytes(raw, LIMITS.max_pixels) > 0
    with pytest.raises(InvalidRequest, match="TIFF") as caught:
        decode_pixels(raw, LIMITS)
    return caught.value.message


@pytest.mark.parametrize("order", ["<", ">"])
def test_a_big_tiff_is_read(order: str) -> None:
    pixels = decode_pixels(big_tiff(GRAY, order=order), LIMITS)
    assert (pixels.width, pixels.height) == (16, 16)
    pixels.memory.close()


@pytest.mark.parametrize("far", FAR)
@pytest.mark.parametrize("order", ["<", ">"])
def test_a_directory_out_of_the_file_is_a_damaged_header(far: int, order: str) -> None:
    raw = big_tiff(GRAY, directory=far, order=order)
    assert tiff_size(raw) is None
    assert "header is damaged" in refused(raw)


@pytest.mark.parametrize("far", FAR)
def test_rubbish_in_place_of_a_next_page_is_no_page(far: int) -> None:
    pixels = decode_pixels(big_tiff(GRAY, following=far), LIMITS)
    assert (pixels.width, pixels.height) == (16, 16)
    pixels.memory.close()


@pytest.mark.parametrize("far", FAR)
@pytest.mark.parametrize("tag", sorted(TILED))
def test_any_number_of_any_tag_is_read_or_refused(tag: int, far: int) -> None:
    for tags in (GRAY, TILED):
        refused_or_read(big_tiff(tags | {tag: far}))
        refused_or_read(big_tiff(tags | {tag: far}, counts={tag: 2}))  # an offset of two numbers


def refused_or_read(raw: bytes) -> None:
    tiff_size(raw)
    assert decoding_bytes(raw, LIMITS.max_pixels) > 0
    try:
        decode_pixels(raw, LIMITS).memory.close()
    except InvalidRequest as error:
        assert error.message.startswith("image is ")  # noqa: PT017 -- most numbers are refused


def test_a_value_of_more_than_32_bits_is_refused_before_it_is_written() -> None:
    with pytest.raises(InvalidRequest, match="header is damaged"):
        clean_tiff(big_tiff(GRAY | {257: 2**40, 278: 2**40}))


@pytest.mark.parametrize("far", FAR)
@pytest.mark.parametrize("order", ["<", ">"])
def test_exif_data_with_any_offset_turn_nothing(far: int, order: str) -> None:
    exif = orientation_at(far, order)
    assert exif_orientation(exif) is None
    file = BytesIO()
    Image.new("RGB", (8, 4)).save(file, "JPEG", exif=b"Exif\0\0" + exif)
    png = png_of(8, 4, chunk(b"eXIf", exif), chunk(b"IDAT", zlib.compress(bytes(4 * 25))))
    for raw in (file.getvalue(), png):
        pixels = decode_pixels(raw, LIMITS)
        assert (pixels.width, pixels.height) == (8, 4)
        pixels.memory.close()
