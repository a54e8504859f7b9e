"""The size of a picture in a file of boxes (ISO/IEC 14496-12): AVIF and HEIC."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

MAX_BOXES = 1024  # that are looked at; a phone's file has about 60, half of them pieces of a grid

_PATH = (b"meta", b"iprp", b"ipco")
_META_VERSION = 4  # bytes before the first box inside `meta`


class _Box(NamedTuple):
    kind: bytes
    start: int
    end: int


def boxed_size(raw: bytes) -> tuple[int, int] | None:
    """The largest size that the file declares; None where it declares none."""
    found, start, end = None, 0, len(raw)
    for name in _PATH:
        box = next((box for box in _boxes(raw, start, end) if box.kind == name), None)
        if box is None:
            return None
        start, end = box.start + (_META_VERSION if name == b"meta" else 0), box.end
    for box in _boxes(raw, start, end):
        if box.kind == b"ispe":
            width = int.from_bytes(raw[box.start + 4 : box.start + 8], "big")
            height = int.from_bytes(raw[box.start + 8 : box.start + 12], "big")
            if found is None or width * height > found[0] * found[1]:
                found = width, height
    return found


def _boxes(raw: bytes, start: int, end: int) -> Iterator[_Box]:
    """The boxes between two positions, each with those of its content."""
    for _ in range(MAX_BOXES):
        if start + 8 > end:
            return
        size, head = int.from_bytes(raw[start : start + 4], "big"), 8
        if size == 1:
            size, head = int.from_bytes(raw[start + 8 : start + 16], "big"), 16
        stop = end if size == 0 else start + size
        if size and size < head:
            return
        yield _Box(raw[start + 4 : start + 8], start + head, min(stop, end))
        start = stop
