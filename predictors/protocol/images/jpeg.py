"""JPEG files: the size in the header, and the one picture without what is not needed to decode it.

A file is walked by its segments (ITU-T T.81, annex B), in time linear in its length.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from predictors.errors import InvalidRequest
from predictors.protocol.images.kinds import CleanFile
from predictors.protocol.images.tiff import exif_orientation

MAX_SCANS = 100  # each scan of a progressive JPEG costs a pass over all pixels
MAX_SEGMENTS = 4096  # camera files have about 100

_APP0, _APP1, _ADOBE, _APP15, _COMMENT = 0xE0, 0xE1, 0xEE, 0xEF, 0xFE
_SCAN, _END = 0xDA, 0xD9
_COLOUR = {_APP0: 16, _ADOBE: 14}  # segments that tell the colour space, and their least bytes
_EXIF, _XMP = b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0"
_STANDALONE = {0x01, *range(0xD0, 0xD9)}  # markers without a length
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}  # start of frame, of any process
_HUFFMAN = {0xC0, 0xC1, 0xC2}
_PROGRESSIVE = {0xC2, 0xC6, 0xCA, 0xCE}
# in a scan's data 0xFF is followed by 0x00, a restart marker or another 0xFF
_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd7\xff]")


class JpegFrame(NamedTuple):
    width: int
    height: int
    is_progressive: bool
    has_codes: bool
    """Huffman's, which are whole bits; arithmetic coding takes less for what repeats."""


class _Segment(NamedTuple):
    marker: int
    start: int
    end: int


def read_frame(raw: bytes) -> JpegFrame | None:
    """The size of the picture; None where the header can't be read."""
    for marker, start, _ in _header(raw):
        if marker in _FRAMES:
            height = int.from_bytes(raw[start + 5 : start + 7], "big")
            width = int.from_bytes(raw[start + 7 : start + 9], "big")
            return JpegFrame(width, height, marker in _PROGRESSIVE, marker in _HUFFMAN)
    return None


def clean_jpeg(raw: bytes) -> CleanFile:
    """The file up to the end of its first picture, without colour profiles, previews and comments.

    A film or a second picture behind it, as phones write them, is cut off. Raises `InvalidRequest`
    for a header without a scan, and for too many scans or segments.
    """
    kept, orientation, has_xmp = [raw[:2]], None, False
    for marker, start, end in _header(raw):
        if marker == _SCAN:
            data = raw[start : _end_of_picture(raw, start)]
            _check_data(read_frame(raw), len(data))
            return CleanFile(b"".join([*kept, data]), orientation)
        is_needed = not (_APP0 <= marker <= _APP15 or marker == _COMMENT)
        if marker in _COLOUR:  # a shorter one tells nothing, and stops the decoder
            is_needed = end - start >= _COLOUR[marker]
        if marker == _APP1 and raw.startswith(_EXIF, start + 4):
            orientation = orientation or exif_orientation(raw[start + 4 + len(_EXIF) : end])
        elif marker == _APP1 and not has_xmp:  # which may tell the orientation too
            is_needed = has_xmp = raw.startswith(_XMP, start + 4)
        if is_needed:
            kept.append(raw[start:end])
    raise InvalidRequest("is a JPEG picture whose header is damaged")


def _check_data(frame: JpegFrame | None, num_bytes: int) -> None:
    # 8x8 pixels take a bit at least; a quarter of it, since one component may be coarser
    if frame is not None and frame.has_codes and frame.width * frame.height > 2048 * num_bytes:
        shown = f"{frame.width}x{frame.height} pixels with only {num_bytes} bytes of data"
        raise InvalidRequest(f"is damaged or cut short: a JPEG picture of {shown}")


def _header(raw: bytes) -> Iterator[_Segment]:
    """The segments up to the first scan. Ends early where there is no segment."""
    position = 2
    for _ in range(MAX_SEGMENTS):
        if position + 9 > len(raw) or raw[position] != 0xFF:
            return
        marker = raw[position + 1]
        if marker == 0xFF:  # a fill byte
            position += 1
            continue
        end = position + 2
        if marker not in _STANDALONE:
            end += int.from_bytes(raw[end : end + 2], "big")
        yield _Segment(marker, position, end)
        if marker == _SCAN:
            return
        position = end


def _end_of_picture(raw: bytes, first_scan: int) -> int:
    """The position behind the end marker, or the file's length if there is none."""
    position, num_scans = first_scan, 0
    for _ in range(MAX_SEGMENTS):
        found = _MARKER.search(raw, position)
        if found is None:
            return len(raw)
        marker = raw[found.start() + 1]
        if marker == _END:
            return found.end()
        num_scans += marker == _SCAN
        if num_scans > MAX_SCANS:
            raise InvalidRequest(f"is a progressive JPEG of more than {MAX_SCANS} scans")
        position = found.end() + int.from_bytes(raw[found.end() : found.end() + 2], "big")
    raise InvalidRequest(f"is a JPEG picture of more than {MAX_SEGMENTS} segments")
