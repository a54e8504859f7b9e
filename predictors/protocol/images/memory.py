"""Estimates the memory that decoding a picture file takes, from its header."""

from __future__ import annotations

PER_PIXEL_OUT = 3 + 4  # the returned RGB, and Pillow's own four bytes per pixel
PER_PIXEL_TRANSPOSED = 4  # a second copy if EXIF says that the picture is rotated
PER_PIXEL_PROGRESSIVE = 6  # coefficients of all scans: two bytes for each of three components
PER_PIXEL_WEBP = 4 + 4 + 4 + 4  # two canvases, the decoder's pixels, and their copy
MIN_BYTES = 4 * 2**20
MAX_SEGMENTS = 4096  # of a JPEG that are searched for its header; camera files have about 100

_PNG = b"\x89PNG\r\n\x1a\n"
_STANDALONE = {0x01, *range(0xD0, 0xD9)}  # JPEG markers without a length
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}  # start of frame, of any process
_PROGRESSIVE = {0xC2, 0xC6, 0xCA, 0xCE}


def decoding_bytes(raw: bytes, max_pixels: int) -> int:
    """Estimate the peak memory of decoding `raw`, in bytes, for a picture of at most `max_pixels`.

    An estimate for a budget, from the first bytes: a header may lie, and the decoder checks it
    again in a process with limited memory. A JPEG without a readable header counts as the largest
    picture, other data as a small one.
    """
    pixels, per_pixel = _read(raw, max_pixels)
    # a larger picture is refused by its header, which takes no memory
    return MIN_BYTES + len(raw) + (pixels * per_pixel if pixels <= max_pixels else 0)


def _read(raw: bytes, max_pixels: int) -> tuple[int, int]:
    """Return the number of pixels and the bytes per pixel."""
    out = PER_PIXEL_OUT + PER_PIXEL_TRANSPOSED
    if raw.startswith(_PNG):
        return _big_endian(raw, 16, 4) * _big_endian(raw, 20, 4), out
    if raw[:4] == b"RIFF" and raw[8:12] == b"WEBP":
        return _webp_pixels(raw), out + PER_PIXEL_WEBP
    if raw.startswith(b"\xff\xd8"):
        return _jpeg(raw, out) or (max_pixels, out + PER_PIXEL_PROGRESSIVE)
    return 0, 0


def _webp_pixels(raw: bytes) -> int:
    # https://developers.google.com/speed/webp/docs/riff_container
    kind = raw[12:16]
    if kind == b"VP8X":
        return (_little_endian(raw, 24, 3) + 1) * (_little_endian(raw, 27, 3) + 1)
    if kind == b"VP8L":
        bits = _little_endian(raw, 21, 4)
        return ((bits & 0x3FFF) + 1) * ((bits >> 14 & 0x3FFF) + 1)
    return (_little_endian(raw, 26, 2) & 0x3FFF) * (_little_endian(raw, 28, 2) & 0x3FFF)


def _jpeg(raw: bytes, out: int) -> tuple[int, int] | None:
    # ITU-T T.81, annex B: markers with their lengths, up to the frame header
    position = 2
    for _ in range(MAX_SEGMENTS):
        if position + 9 > len(raw) or raw[position] != 0xFF:
            break
        marker = raw[position + 1]
        if marker in _FRAMES:
            pixels = _big_endian(raw, position + 5, 2) * _big_endian(raw, position + 7, 2)
            return pixels, out + (PER_PIXEL_PROGRESSIVE if marker in _PROGRESSIVE else 0)
        if marker == 0xFF:  # a fill byte
            position += 1
        else:
            position += 2 if marker in _STANDALONE else 2 + _big_endian(raw, position + 2, 2)
    return None


def _big_endian(raw: bytes, start: int, size: int) -> int:
    return int.from_bytes(raw[start : start + size], "big")


def _little_endian(raw: bytes, start: int, size: int) -> int:
    return int.from_bytes(raw[start : start + size], "little")
