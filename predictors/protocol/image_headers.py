"""How much memory a picture will take to decode, told from its first bytes, before any decoder sees
it.

The sizes are an estimate for a budget, not a check: a header may lie, and the decoder checks it
again, in a process whose memory is limited.
"""

from __future__ import annotations

PER_PIXEL_OUT = 3 + 4  # what is handed back, and Pillow's own four bytes a pixel
PER_PIXEL_TURNED = 4  # a second copy for a picture that EXIF says lies on its side
PER_PIXEL_PROGRESSIVE = 6  # coefficients of all scans, two bytes for each of three components
PER_PIXEL_WEBP = 4 + 4 + 4 + 4  # two canvases, the decoder's pixels, and their copy
LEAST_BYTES = 4 * 2**20
MAX_SEGMENTS = 4096  # of a JPEG that are walked; camera files have a hundred

_PNG = b"\x89PNG\r\n\x1a\n"
_STANDALONE = {0x01, *range(0xD0, 0xD9)}  # JPEG markers without a length
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}  # start of frame, of any process
_PROGRESSIVE = {0xC2, 0xC6, 0xCA, 0xCE}


def decoding_bytes(raw: bytes, max_pixels: int) -> int:
    """Bytes of memory that decoding `raw` takes at its peak, for a picture of at most `max_pixels`.

    A JPEG whose header is not found counts as the largest, what is no picture as a small one.
    """
    pixels, per_pixel = _read(raw, max_pixels)
    # one that is too large is refused on its header and takes nothing
    return LEAST_BYTES + len(raw) + (pixels * per_pixel if pixels <= max_pixels else 0)


def _read(raw: bytes, max_pixels: int) -> tuple[int, int]:
    """Pixels, and bytes that each takes."""
    out = PER_PIXEL_OUT + PER_PIXEL_TURNED
    if raw.startswith(_PNG):
        return _big(raw, 16, 4) * _big(raw, 20, 4), out
    if raw[:4] == b"RIFF" and raw[8:12] == b"WEBP":
        return _webp_pixels(raw), out + PER_PIXEL_WEBP
    if raw.startswith(b"\xff\xd8"):
        return _jpeg(raw, out) or (max_pixels, out + PER_PIXEL_PROGRESSIVE)
    return 0, 0


def _webp_pixels(raw: bytes) -> int:
    # https://developers.google.com/speed/webp/docs/riff_container
    kind = raw[12:16]
    if kind == b"VP8X":
        return (_little(raw, 24, 3) + 1) * (_little(raw, 27, 3) + 1)
    if kind == b"VP8L":
        bits = _little(raw, 21, 4)
        return ((bits & 0x3FFF) + 1) * ((bits >> 14 & 0x3FFF) + 1)
    return (_little(raw, 26, 2) & 0x3FFF) * (_little(raw, 28, 2) & 0x3FFF)


def _jpeg(raw: bytes, out: int) -> tuple[int, int] | None:
    # ITU-T T.81, annex B: markers, each followed by its length, until the frame's header
    position = 2
    for _ in range(MAX_SEGMENTS):
        if position + 9 > len(raw) or raw[position] != 0xFF:
            break
        marker = raw[position + 1]
        if marker in _FRAMES:
            pixels = _big(raw, position + 5, 2) * _big(raw, position + 7, 2)
            return pixels, out + (PER_PIXEL_PROGRESSIVE if marker in _PROGRESSIVE else 0)
        if marker == 0xFF:  # a fill byte
            position += 1
        else:
            position += 2 if marker in _STANDALONE else 2 + _big(raw, position + 2, 2)
    return None


def _big(raw: bytes, start: int, size: int) -> int:
    return int.from_bytes(raw[start : start + size], "big")


def _little(raw: bytes, start: int, size: int) -> int:
    return int.from_bytes(raw[start : start + size], "little")
