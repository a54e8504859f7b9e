"""Pictures of which one colour is transparent, at every depth: pixels and masks are compared with
what the PNG standard says of the samples in the file."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import pytest
from numpy.typing import NDArray

from predictors.protocol.images.decode import Pixels, decode_mask, decode_pixels
from predictors.settings import ImageLimits
from tests.http.pictures import chunk

LIMITS = ImageLimits()
WIDTH, HEIGHT = 37, 23
ADAM7 = (
    (0, 0, 8, 8),
    (4, 0, 8, 8),
    (0, 4, 4, 8),
    (2, 0, 4, 4),
    (0, 2, 2, 4),
    (1, 0, 2, 2),
    (0, 1, 1, 2),
)
GRAY, RGB = 0, 2
Samples = NDArray[np.int64]


def png(samples: Samples, depth: int, key: tuple[int, ...], *, interlaced: bool = False) -> bytes:
    """A PNG of `samples`, (height, width, 1 or 3), whose pixels equal to `key` are transparent."""
    passes = ADAM7 if interlaced else ((0, 0, 1, 1),)
    parts = (samples[top::down, left::right] for left, top, right, down in passes)
    rows = b"".join(b"\0" + packed(row, depth) for part in parts if part.size for row in part)
    colour = GRAY if samples.shape[-1] == 1 else RGB
    height, width, _ = samples.shape
    return b"".join([
        b"\x89PNG\r\n\x1a\n",
        chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlaced)),
        chunk(b"tRNS", struct.pack(f">{len(key)}H", *key)),
        chunk(b"IDAT", zlib.compress(rows)),
        chunk(b"IEND", b""),
    ])  # fmt: skip


def packed(row: Samples, depth: int) -> bytes:
    if depth == 16:
        return row.astype(">u2").tobytes()
    bits = "".join(format(sample, f"0{depth}b") for sample in row.ravel())
    bits += "0" * (-len(bits) % 8)
    return bytes(int(bits[at : at + 8], 2) for at in range(0, len(bits), 8))


def array(pixels: Pixels) -> NDArray[np.uint8]:
    found = np.frombuffer(pixels.memory.map(), np.uint8)
    return found.reshape(pixels.height, pixels.width, -1).copy()


def samples_of(depth: int, channels: int) -> Samples:
    """Few levels that lie beside each other, so that equal high bytes have other low bytes."""
    rng = np.random.default_rng(depth + channels)
    few = rng.integers(0, 3, (HEIGHT, WIDTH, channels))
    if depth == 16:
        return few * 0x0101 + rng.integers(0, 2, (HEIGHT, WIDTH, channels)) + 0x1234
    return few % 2**depth


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize(
    ("depth", "channels"), [(1, 1), (2, 1), (4, 1), (8, 1), (16, 1), (8, 3), (16, 3)]
)
def test_pixels_of_the_transparent_colour_alone_are_clear(
    depth: int, channels: int, interlaced: bool
) -> None:
    samples = samples_of(depth, channels)
    high = samples >> 8 if depth == 16 else samples * 255 // (2**depth - 1)
    for key in {tuple(int(level) for level in samples[at, at]) for at in range(8)}:
        is_clear = (samples == key).all(-1)
        file = png(samples, depth, key, interlaced=interlaced)

        shown = np.where(is_clear[..., None], 255, high)
        assert (array(decode_pixels(file, LIMITS)) == shown).all(), key
        redrawn = np.where(is_clear, 255, 0)
        assert (array(decode_mask(file, LIMITS))[..., 0] == redrawn).all(), key


@pytest.mark.parametrize(
    ("depth", "channels"), [(2, 1), (4, 1), (8, 1), (8, 3)], ids=["2", "4", "8", "8 of RGB"]
)
def test_bits_of_the_transparent_colour_that_no_sample_has_do_not_count(
    depth: int, channels: int
) -> None:
    samples = samples_of(depth, channels)
    key = tuple(int(level) for level in samples[0, 0])
    plain = array(decode_pixels(png(samples, depth, key), LIMITS))
    more = tuple(level + 2 ** (depth + 1) for level in key)
    assert (array(decode_pixels(png(samples, depth, more), LIMITS)) == plain).all()


@pytest.mark.parametrize(("depth", "channels"), [(2, 1), (16, 1), (16, 3)])
def test_a_transparent_colour_that_no_pixel_has_changes_nothing(depth: int, channels: int) -> None:
    samples = np.full((HEIGHT, WIDTH, channels), 2)
    samples[:4] = 1
    file = png(samples, depth, (3,) * channels)
    high = samples >> 8 if depth == 16 else samples * 85
    assert (array(decode_pixels(file, LIMITS)) == high).all()
    assert (array(decode_mask(file, LIMITS)) == high[..., :1]).all()
