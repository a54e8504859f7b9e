"""Estimates the memory that decoding a picture file takes, from its header."""

from __future__ import annotations

from collections.abc import Callable

from predictors.protocol.images import kinds
from predictors.protocol.images.boxes import boxed_size
from predictors.protocol.images.gif import gif_size
from predictors.protocol.images.jpeg import read_frame
from predictors.protocol.images.kinds import Kind, kind_of
from predictors.protocol.images.tiff import tiff_size

PER_PIXEL_OUT = 3 + 4  # the returned RGB, and Pillow's own four bytes per pixel
PER_PIXEL_TRANSPOSED = 4  # a second copy if EXIF says that the picture is rotated
PER_PIXEL_PROGRESSIVE = 6  # coefficients of all scans: two bytes for each of three components
PER_PIXEL_WEBP = 4 + 4 + 4 + 4  # two canvases, the decoder's pixels, and their copy
PER_PIXEL_TIFF = 8  # a strip as large as the picture, of four samples of 16 bits
PER_PIXEL_DEEP_PNG = 4 + 2  # decoded twice if one of its colours is transparent
PER_PIXEL_BOXED = 6 + 4  # planes of 16 bits, and the decoder's pixels
MIN_BYTES = 4 * 2**20

_DEEP_RGB = bytes([16, 2])  # bits of a sample and kind of colour in a PNG's header

_Size = Callable[[bytes], tuple[int, int] | None]


def png_size(raw: bytes) -> tuple[int, int]:
    return int.from_bytes(raw[16:20], "big"), int.from_bytes(raw[20:24], "big")


def bmp_size(raw: bytes) -> tuple[int, int]:
    if raw[14] == 12:  # OS/2's header
        return _little_endian(raw, 18, 2), _little_endian(raw, 20, 2)
    height = int.from_bytes(raw[22:26], "little", signed=True)
    return _little_endian(raw, 18, 4), abs(height)  # negative: from the top


def webp_size(raw: bytes) -> tuple[int, int]:
    # https://developers.google.com/speed/webp/docs/riff_container
    kind = raw[12:16]
    if kind == b"VP8X":
        return _little_endian(raw, 24, 3) + 1, _little_endian(raw, 27, 3) + 1
    if kind == b"VP8L":
        bits = _little_endian(raw, 21, 4)
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    return _little_endian(raw, 26, 2) & 0x3FFF, _little_endian(raw, 28, 2) & 0x3FFF


_KINDS: dict[Kind, tuple[_Size, int]] = {
    kinds.PNG: (png_size, 0),
    kinds.WEBP: (webp_size, PER_PIXEL_WEBP),
    kinds.GIF: (gif_size, 0),
    kinds.BMP: (bmp_size, 0),
    kinds.TIFF: (tiff_size, PER_PIXEL_TIFF),
    kinds.AVIF: (boxed_size, PER_PIXEL_BOXED),
    kinds.HEIC: (boxed_size, PER_PIXEL_BOXED),
}
"""How the size of each kind but JPEG is read, and the bytes per pixel beside those of all."""


def decoding_bytes(raw: bytes, max_pixels: int) -> int:
    """Estimate the peak memory of decoding `raw`, in bytes, for a picture of at most `max_pixels`.

    An estimate for a budget, from the first bytes: a header may lie, and the decoder checks it
    again in a process with limited memory. A picture without a readable header counts as the
    largest, other data as a small one. Takes microseconds.
    """
    kind = kind_of(raw)
    least = MIN_BYTES + 2 * len(raw)  # the file and a copy without what is not needed
    if not kind.codec:
        return least
    size, more = _jpeg(raw) if kind is kinds.JPEG else _other(kind, raw)
    pixels = max_pixels if size is None else size[0] * size[1]
    # a larger picture is refused by its header, which takes no memory
    per_pixel = PER_PIXEL_OUT + PER_PIXEL_TRANSPOSED + more
    return least + (pixels * per_pixel if pixels <= max_pixels else 0)


def _jpeg(raw: bytes) -> tuple[tuple[int, int] | None, int]:
    frame = read_frame(raw)
    if frame is None:
        return None, PER_PIXEL_PROGRESSIVE
    return (frame.width, frame.height), PER_PIXEL_PROGRESSIVE if frame.is_progressive else 0


def _other(kind: Kind, raw: bytes) -> tuple[tuple[int, int] | None, int]:
    read_size, more = _KINDS[kind]
    if kind is kinds.PNG and raw[24:26] == _DEEP_RGB:
        more = PER_PIXEL_DEEP_PNG
    return read_size(raw), more


def _little_endian(raw: bytes, start: int, size: int) -> int:
    return int.from_bytes(raw[start : start + size], "little")
