"""The size of a picture in a file of boxes (ISO/IEC 14496-12): AVIF and HEIC."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

MAX_BOXES = 1024  # that are looked at; a phone's file has about 60, half of them pieces of a grid

_PATH = (b"meta", b"iprp", b"ipco")
_META_VERSION = 4  # bytes before the first box inside `meta`
_HEAD = struct.Struct(">I4s")
HEAD_BYTES = _HEAD.size
"""Of a box whose size has 32 bits."""


class _Box(NamedTuple):
    kind: bytes
    start: int
    end: int


def box_head(raw: bytes, at: int) -> tuple[int, bytes, int]:
    """The size of the box at `at` with its head, as it tells it (0: up to the end), its name, and
    the bytes of its head; the file has `HEAD_BYTES` there."""
    size, name = _HEAD.unpack_from(raw, at)
    if size == 1:  # 64 bits of it follow
        return int.from_bytes(raw[at + 8 : at + 16], "big"), name, 16
    return size, name, HEAD_BYTES


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
        if start + HEAD_BYTES > end:
            return
        size, kind, head = box_head(raw, start)
        stop = end if size == 0 else start + size
        if size and size < head:
            return
        yield _Box(kind, start + head, min(stop, end))
        start = stop
