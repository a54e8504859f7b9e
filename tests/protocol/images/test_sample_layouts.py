"""Files whose samples lie in a rare order: planes of a TIFF, and a GIF's frame that leaves a part
of its screen. Each is compared with the samples that were written."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping, Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from predictors.errors import InvalidRequest
from predictors.protocol.images.decode import decode_mask, decode_pixels
from predictors.settings import ImageLimits
from tests.protocol.images.test_transparent_colour import array

LIMITS = ImageLimits()
WIDTH, HEIGHT = 24, 10
NONE, DEFLATE = 1, 8
BLACK_IS_ZERO, RGB, CMYK = 1, 2, 5
CLEAR_BY_ALPHA = 2  # TIFF's kind of alpha that is not multiplied
Samples = NDArray[np.int64]


def planar_tiff(samples: Samples, colours: int, depth: int, compression: int, order: str) -> bytes:
    """A TIFF of (height, width, channels) with each channel in a strip of its own."""
    kind = f"{order}u{depth // 8}"
    strips = [samples[..., each].astype(kind).tobytes() for each in range(samples.shape[-1])]
    if compression == DEFLATE:
        strips = [zlib.compress(strip) for strip in strips]
    return tiff_of(strips, samples.shape, colours, depth, compression, order)


def tiff_of(
    strips: Sequence[bytes],
    shape: tuple[int, ...],
    colours: int,
    depth: int,
    compression: int,
    order: str,
) -> bytes:
    height, width, channels = shape
    offsets = [8 + sum(map(len, strips[:at])) for at in range(len(strips))]
    tags: dict[int, list[int]] = {
        256: [width], 257: [height], 258: [depth] * channels, 259: [compression], 262: [colours],
        273: offsets, 277: [channels], 278: [height], 279: [len(strip) for strip in strips],
        284: [2],
    }  # fmt: skip
    if (colours == RGB and channels > 3) or (colours == BLACK_IS_ZERO and channels > 1):
        tags[338] = [CLEAR_BY_ALPHA] * (channels - (3 if colours == RGB else 1))
    return written(tags, strips, order)


def written(tags: Mapping[int, Sequence[int]], strips: Sequence[bytes], order: str) -> bytes:
    start = 8 + sum(map(len, strips))
    tail_start, entries, tail = start + 2 + 12 * len(tags) + 4, b"", b""
    for tag, values in sorted(tags.items()):
        packed = struct.pack(f"{order}{len(values)}I", *values)
        if len(packed) > 4:
            where = struct.pack(f"{order}I", tail_start + len(tail))
            tail, packed = tail + packed, where
        entries += struct.pack(f"{order}HHI", tag, 4, len(values)) + packed
    mark = b"II*\0" if order == "<" else b"MM\0*"
    head = mark + struct.pack(f"{order}I", start)
    count = struct.pack(f"{order}H", len(tags))
    return head + b"".join(strips) + count + entries + bytes(4) + tail


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("compression", [NONE, DEFLATE])
@pytest.mark.parametrize("depth", [8, 16])
@pytest.mark.parametrize(
    ("colours", "channels"), [(BLACK_IS_ZERO, 1), (RGB, 3), (RGB, 4), (CMYK, 4)]
)
def test_separate_planes_are_read_at_every_depth(
    colours: int, channels: int, depth: int, compression: int, order: str
) -> None:
    most = 2**depth - 1
    samples = np.random.default_rng(depth).integers(0, most + 1, (HEIGHT, WIDTH, channels))
    part = samples / most
    if colours == CMYK:
        expected = (1 - part[..., :3]) * (1 - part[..., 3:])
    elif channels == 4:
        expected = part[..., :3] * part[..., 3:] + 1 - part[..., 3:]
    else:
        expected = np.broadcast_to(part, (HEIGHT, WIDTH, 3))
    file = planar_tiff(samples, colours, depth, compression, order)
    assert np.abs(array(decode_pixels(file, LIMITS)) - expected * 255).max() <= 2


@pytest.mark.parametrize("compression", [NONE, DEFLATE])
@pytest.mark.parametrize(("colours", "channels"), [(BLACK_IS_ZERO, 2), (RGB, 5), (CMYK, 5)])
def test_planes_that_no_mode_of_pillow_has_are_refused_by_their_number(
    colours: int, channels: int, compression: int
) -> None:
    samples = np.zeros((HEIGHT, WIDTH, channels), np.int64)
    with pytest.raises(InvalidRequest) as caught:
        decode_pixels(planar_tiff(samples, colours, 8, compression, "<"), LIMITS)
    assert f"TIFF picture of {channels} samples a pixel in separate planes" in str(caught.value)


# -- a GIF's frame on its screen -------------------------------------------------------------------
PALETTE = np.random.default_rng(5).integers(0, 255, (256, 3)).astype(np.uint8)  # no white
SCREEN, FRAME = (12, 10), (2, 3, 8, 4)  # left, top, width, height


def gif(frame: Samples, clear: int | None = None) -> bytes:
    """A still GIF of `frame`, numbers of colours, at `FRAME` on `SCREEN`."""
    control = b"" if clear is None else bytes([0x21, 0xF9, 4, 1, 0, 0, clear, 0])
    head = b"GIF89a" + struct.pack("<HHBBB", *SCREEN, 0xF7, 7, 0) + PALETTE.tobytes()
    codes = [256, *(int(each) for each in frame.ravel()), 257]  # few enough to stay at 9 bits
    bits = sum(code << 9 * at for at, code in enumerate(codes))
    data = bits.to_bytes(-(-9 * len(codes) // 8), "little")
    block = b"\x08" + bytes([len(data)]) + data + b"\0"
    return head + control + b"\x2c" + struct.pack("<HHHHB", *FRAME, 0) + block + b";"


@pytest.mark.parametrize("clear", [None, 9])
def test_what_a_frame_leaves_of_its_screen_is_clear(clear: int | None) -> None:
    left, top, width, height = FRAME
    frame = np.arange(width * height).reshape(height, width)
    expected = np.full((SCREEN[1], SCREEN[0], 3), 255)
    is_clear = np.full((SCREEN[1], SCREEN[0]), 255)
    expected[top : top + height, left : left + width] = PALETTE[frame]
    is_clear[top : top + height, left : left + width] = 0
    if clear is not None:
        expected[top + clear // width, left + clear % width] = 255
        is_clear[top + clear // width, left + clear % width] = 255
    file = gif(frame, clear)
    assert (array(decode_pixels(file, LIMITS)) == expected).all()
    assert (array(decode_mask(file, LIMITS))[..., 0] == is_clear).all()


@pytest.mark.parametrize("counts", ["none", "zero", "short", "right"])
@pytest.mark.parametrize("rows", [3, 5, HEIGHT])
def test_strips_without_compression_need_no_true_byte_counts(counts: str, rows: int) -> None:
    samples = np.random.default_rng(rows).integers(0, 256, (HEIGHT, WIDTH, 3))
    strips = [samples[at : at + rows].astype(np.uint8).tobytes() for at in range(0, HEIGHT, rows)]
    offsets = [8 + sum(map(len, strips[:at])) for at in range(len(strips))]
    tags = {
        256: [WIDTH], 257: [HEIGHT], 258: [8, 8, 8], 259: [NONE], 262: [RGB], 273: offsets,
        277: [3], 278: [rows], 284: [1],
    }  # fmt: skip
    if counts != "none":
        change = {"zero": lambda _: 0, "short": lambda size: size // 2, "right": int}[counts]
        tags[279] = [change(len(strip)) for strip in strips]
    file = written(tags, strips, "<")
    assert (array(decode_pixels(file, LIMITS)) == samples).all()
