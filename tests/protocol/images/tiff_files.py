"""Writes small TIFF files with any tags."""

from __future__ import annotations

import struct
from collections.abc import Mapping

_GRAY = {256: 16, 257: 16, 258: 8, 259: 1, 262: 1, 273: 8, 277: 1, 278: 16, 279: 256}
_TILES = {324: 8, 325: 256}


def tiff(
    tags: Mapping[int, int], *, strip_bytes: int | None = None, num_tags: int | None = None
) -> bytes:
    """A gray TIFF of 16x16 pixels in one strip, with `tags` beside or instead of its own."""
    pixels = bytes(256)
    chosen = _GRAY | (_TILES if 322 in tags else {}) | dict(tags)
    if strip_bytes is not None:
        chosen[279] = strip_bytes
    entries = [struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(chosen.items())]
    head = struct.pack("<2sHI", b"II", 42, 8 + len(pixels))
    count = struct.pack("<H", len(entries) if num_tags is None else num_tags)
    return b"".join([head, pixels, count, *entries, bytes(4)])
