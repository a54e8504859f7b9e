"""Written PNG files, read back by Pillow, at every level and for any size and strides."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from predictors.protocol.png import write_png

Pixels = NDArray[np.uint8]
LEVELS = range(10)
KINDS = ("flat", "noise", "across", "down", "photograph")


def picture(kind: str, height: int, width: int) -> Pixels:
    rng = np.random.default_rng([height, width])
    across, down = np.arange(width)[None, :, None], np.arange(height)[:, None, None]
    shape = (height, width, 3)
    made = {
        "flat": np.full(shape, 200),
        "noise": rng.integers(0, 256, shape),
        "across": np.broadcast_to(across * 7 + np.arange(3), shape),
        "down": np.broadcast_to(down * 5 + np.arange(3), shape),
        "photograph": 128 + 90 * np.sin(across / 9 + down / 31) + rng.normal(0, 2, shape),
    }[kind]
    return (made.astype(np.int64) % 256).astype(np.uint8)


def read(file: bytes) -> Pixels:
    with Image.open(io.BytesIO(file)) as check:
        check.verify()
    with Image.open(io.BytesIO(file)) as image:
        assert (image.format, image.mode, image.info) == ("PNG", "RGB", {})
        return np.asarray(image)


def chunks(file: bytes) -> list[tuple[bytes, bytes]]:
    """Type and body of each chunk. Checks every checksum, and that nothing is left over."""
    assert file[:8] == b"\x89PNG\r\n\x1a\n"
    place, found = 8, []
    while place < len(file):
        size, kind = struct.unpack_from(">I4s", file, place)
        body = file[place + 8 : place + 8 + size]
        (check,) = struct.unpack_from(">I", file, place + 8 + size)
        assert check == zlib.crc32(kind + body)
        found.append((kind, body))
        place += 12 + size
    return found


@given(st.integers(1, 70), st.integers(1, 70), st.sampled_from(KINDS), st.sampled_from(LEVELS))
def test_pillow_reads_the_written_pixels(height: int, width: int, kind: str, level: int) -> None:
    pixels = picture(kind, height, width)
    assert np.array_equal(read(write_png(pixels, level)), pixels)


@pytest.mark.parametrize("level", LEVELS)
def test_a_picture_of_one_pixel_is_written_at_every_level(level: int) -> None:
    pixels = np.array([[[255, 0, 7]]], np.uint8)
    assert np.array_equal(read(write_png(pixels, level)), pixels)


@pytest.mark.parametrize("level", [0, 1, 6])
def test_strided_views_are_written_correctly(level: int) -> None:
    whole = picture("photograph", 61, 47)
    views = [
        whole[::2, 3:40],
        whole[::-1, ::-3],
        whole.transpose(1, 0, 2),
        whole[..., ::-1],
        np.broadcast_to(whole[:1, :1], (9, 5, 3)),
    ]
    for view in views:
        assert np.array_equal(read(write_png(view, level)), view)


def test_a_file_has_no_metadata() -> None:
    pixels = picture("photograph", 33, 65)
    (head, header), (middle, body), (end, nothing) = chunks(write_png(pixels, 1))
    assert (head, middle, end, nothing) == (b"IHDR", b"IDAT", b"IEND", b"")
    assert struct.unpack(">IIBBBBB", header) == (65, 33, 8, 2, 0, 0, 0)
    assert len(zlib.decompress(body)) == 33 * (1 + 65 * 3)


@pytest.mark.parametrize("level", LEVELS)
def test_a_packet_stands_before_the_pixels_and_changes_nothing_else(level: int) -> None:
    pixels = picture("photograph", 33, 65)
    (head, text, body, end), plain = (
        chunks(write_png(pixels, level, xmp=x)) for x in (b"<x/>", b"")
    )
    assert [head, body, end] == plain
    assert text == (b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0<x/>")


@pytest.mark.parametrize("level", LEVELS)
def test_the_same_pixels_make_the_same_file(level: int) -> None:
    pixels = picture("photograph", 128, 96)
    assert write_png(pixels, level) == write_png(pixels.copy(), level)


@pytest.mark.parametrize(("kind", "chosen"), [("across", 2), ("down", 1)])
def test_the_filter_with_smaller_differences_is_chosen(kind: str, chosen: int) -> None:
    _, (_, body), _ = chunks(write_png(picture(kind, 64, 64), 1))
    assert zlib.decompress(body)[0] == chosen


def test_level_0_stores_and_the_others_compress() -> None:
    pixels = picture("photograph", 256, 256)
    sizes = [len(write_png(pixels, level)) for level in LEVELS]
    assert sizes[0] > pixels.nbytes
    assert all(size < 0.8 * pixels.nbytes for size in sizes[1:])
    assert sizes[9] <= sizes[2]


def test_a_photograph_is_no_larger_than_pillow_writes_it_at_level_1() -> None:
    pixels = picture("photograph", 512, 512)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", compress_level=1)
    assert len(write_png(pixels, 1)) <= len(file.getvalue())
