"""PNG files: the chunks that are needed to decode the picture, and no other.

Text and colour profiles are compressed, and may be as large as the sender likes: they are left out
before the decoder sees them, as is everything behind the picture's end.
"""

from __future__ import annotations

import zlib

from predictors.errors import InvalidRequest
from predictors.protocol.images.kinds import CleanFile
from predictors.protocol.images.tiff import exif_orientation

MAX_CHUNKS = 2**16  # a large picture in pieces of 8 KiB has about 2,500
MAX_ORIENTATION_BYTES = 2**16  # of a chunk that may hold the orientation

_HEADER_END = 33
_PALETTE_COLOURS = 3  # the header's colour type of a picture whose pixels are numbers of colours
_NEEDED = (b"PLTE", b"tRNS")  # once each, beside the data
_XMP = b"XML:com.adobe.xmp\0\0\0"  # and not compressed
_EXIF_TEXTS = (b"Raw profile type exif\0", b"Raw profile type APP1\0")  # ImageMagick's


def clean_png(raw: bytes) -> CleanFile:
    """The file with only the chunks that decoding needs. Raises `InvalidRequest` for an animation,
    for too many chunks, and for a header that is none."""
    if raw[12:16] == b"CgBI":
        raise InvalidRequest("is a PNG in the form that Xcode makes for iPhones; send the original")
    if raw[8:16] != b"\0\0\0\x0dIHDR" or len(raw) < _HEADER_END:
        raise InvalidRequest("is a PNG picture whose header is damaged")
    ranges, seen, orientation = [(0, _HEADER_END)], set(), None
    position = _HEADER_END
    for _ in range(MAX_CHUNKS):
        if position + 12 > len(raw):
            break
        kind = raw[position + 4 : position + 8]
        end = position + 12 + int.from_bytes(raw[position : position + 4], "big")
        if kind == b"acTL" and b"IDAT" not in seen:
            _check_frames(raw[position + 8 : position + 12])
        if kind == b"eXIf":
            orientation = exif_orientation(raw[position + 8 : end - 4])
        is_data = kind in (b"IDAT", b"IEND")
        if kind == b"IDAT" and raw[25] == _PALETTE_COLOURS and b"PLTE" not in seen:
            raise InvalidRequest("is a PNG picture of palette colours without its palette")
        if is_data or (kind not in seen and _is_needed(kind, raw, position, end)):
            seen.add(kind)
            _extend(ranges, position, min(end, len(raw)))
        if kind == b"IEND" or end > len(raw):
            break
        position = end
    else:
        raise InvalidRequest(f"is a PNG picture of more than {MAX_CHUNKS} chunks")
    file = raw
    if ranges != [(0, len(raw))]:
        file = b"".join([raw[start:end] for start, end in ranges])
    return CleanFile(file, orientation)


def _is_needed(kind: bytes, raw: bytes, position: int, end: int) -> bool:
    if kind not in _NEEDED and kind not in (b"iTXt", b"tEXt", b"zTXt"):
        return False
    if end - position > MAX_ORIENTATION_BYTES:
        return kind in _NEEDED  # which the decoder then refuses
    text = raw[position + 8 : end - 4]
    if kind == b"iTXt":
        return text.startswith(_XMP)
    if kind == b"tEXt":
        return text.startswith(_EXIF_TEXTS)
    return kind != b"zTXt" or (text.startswith(_EXIF_TEXTS) and _inflates_within(text[23:]))


def _inflates_within(data: bytes) -> bool:
    try:
        return len(zlib.decompressobj().decompress(data, 2**18)) < 2**18
    except zlib.error:
        return False


def _check_frames(count: bytes) -> None:
    frames = int.from_bytes(count, "big")
    if frames > 1:
        raise InvalidRequest(f"is an animation of {frames} frames; send a single picture")


def _extend(ranges: list[tuple[int, int]], start: int, end: int) -> None:
    if ranges[-1][1] == start:
        ranges[-1] = (ranges[-1][0], end)
    else:
        ranges.append((start, end))
