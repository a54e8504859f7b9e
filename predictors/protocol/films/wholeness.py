"""Refuses films whose files end before the length that they tell themselves.

FFmpeg reads such a file up to its end without an error, and a caller would get an answer about a
part of the film. Only the lengths of the outermost parts are read.
"""

from __future__ import annotations

from predictors.errors import InvalidRequest
from predictors.protocol.images.boxes import HEAD_BYTES, box_head
from predictors.protocol.images.kinds import MATROSKA, Kind

MAX_PARTS = 2**19  # parts of a file, each of which is a step in Python: two for each stored frame
_DATA_BOXES = frozenset({b"mdat", b"moov", b"moof"})
"""Boxes without which frames are missing. Cameras put others of their own behind a film, whose
sizes may be anything."""
_EBML, _SEGMENT, _VOID = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67", b"\xec"


def check_whole(raw: bytes, kind: Kind) -> None:
    """Raise `InvalidRequest` for a file of this kind that is cut short, if it tells its length:
    live recordings do not."""
    missing = _missing_of_segment(raw) if kind is MATROSKA else _missing_of_boxes(raw)
    if missing > 0:
        raise InvalidRequest(
            f"is {kind.name} that is cut short: it has {len(raw)} bytes, and its header tells of "
            f"{missing} more"
        )


def _missing_of_boxes(raw: bytes) -> int:
    """Bytes of MP4's outermost boxes that lie behind the end of the file."""
    at = 0
    for _ in range(MAX_PARTS):
        if at + HEAD_BYTES > len(raw):
            return 0
        size, name, _ = box_head(raw, at)
        if size < HEAD_BYTES:  # up to the end (0), or no box: FFmpeg decides
            return 0
        if at + size > len(raw):
            return at + size - len(raw) if name in _DATA_BOXES else 0
        at += size
    raise InvalidRequest(f"has more than {MAX_PARTS} parts, which are not read")


def _missing_of_segment(raw: bytes) -> int:
    """Bytes of Matroska's segment, which holds everything, that lie behind the end of the file."""
    at = 0
    for name in (_EBML, _VOID, _SEGMENT):
        if raw[at : at + len(name)] != name:
            continue
        length, at = _length(raw, at + len(name))
        if length is None:
            return 0
        at += length
    return at - len(raw)


def _length(raw: bytes, at: int) -> tuple[int | None, int]:
    """EBML's length of what begins behind it, and where that is; None if it is not told."""
    first = raw[at] if at < len(raw) else 0
    count = 9 - first.bit_length()  # zeros before the first one tell the bytes
    if count > 8:
        return None, at
    bits = (1 << 7 * count) - 1
    value = int.from_bytes(raw[at : at + count], "big") & bits
    return None if value == bits else value, at + count
