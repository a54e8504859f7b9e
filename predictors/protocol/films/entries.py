"""Refuses films whose headers have more entries of a kind than FFmpeg opens in a second or two.

FFmpeg compares each name, chapter, fragment and item with all before it, and no limit of time
reaches into its opening of a file. Tables with an entry for each frame cost it no more than
their bytes do and are not counted here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from predictors.errors import InvalidRequest
from predictors.protocol.images.boxes import HEAD_BYTES, box_head
from predictors.protocol.images.kinds import MATROSKA, Kind

MAX_BOXES = 2**19  # of an MP4, outer and inner ones; each is a step in Python and FFmpeg's
MAX_DEPTH = 11  # of boxes within boxes; FFmpeg refuses deeper ones
MAX_STSD_BYTES = 2**17  # of all tracks' descriptions, whose inner boxes are not counted
MOST: dict[bytes, tuple[int, str]] = {
    b"elst": (1024, "edits"),
    b"moof": (65_536, "fragments"),
    b"keys": (4096, "names of metadata"),
    b"----": (4096, "items of metadata"),
    b"pssh": (1024, "keys of encryption"),
    b"iloc": (1024, "items of pictures"),
    b"iinf": (1024, "items of pictures"),
    b"iprp": (0, "properties of pictures"),
    b"cmov": (0, "compressed headers"),
}
"""The most entries in all boxes of a name, and what they are."""
ELEMENTS = {
    b"\x67\xc8": "tags",
    b"\x63\xc4": "tags of chapters",
    b"\x63\xc6": "tags of attachments",
    b"\x73\xc4": "chapters",
    b"\x61\xa7": "attachments",
}
"""Matroska's elements that are counted, by their ids."""
MAX_ELEMENTS = 4096  # of each id, and one more for
BYTES_OF_CHANCE = 2**14  # so many bytes of a file: an id comes up by chance every 2^16
_PARENTS = frozenset(
    b"dinf edts ilst iref mdia meta minf moof moov mvex schi sinf stbl traf trak tref udta"
    b" wave".split()
)
_HIDING = frozenset({b"free", b"hoov"})
"""Boxes that FFmpeg takes for a `moov` if one of `_FIRST` is in them."""
_FIRST = frozenset({b"mvhd", b"cmov"})


def check_entry_counts(raw: bytes, kind: Kind) -> None:
    """Raise `InvalidRequest` for a file of this kind with too many entries, with both numbers."""
    if kind is MATROSKA:
        _check_elements(raw)
    else:
        _check_boxes(raw)


def _check_elements(raw: bytes) -> None:
    """FFmpeg looks for the next element it knows behind a damaged one, so that all bytes count."""
    most = MAX_ELEMENTS + len(raw) // BYTES_OF_CHANCE
    for element, what in ELEMENTS.items():
        if (count := raw.count(element)) > most:
            raise InvalidRequest(
                f"seems to have {count} {what}; at most {most} are read of {len(raw)} bytes"
            )


def _check_boxes(raw: bytes) -> None:
    counts, stsd_bytes = Counter[bytes](), 0
    for name, at, end in _boxes(raw):
        if name == b"stsd":
            stsd_bytes += end - at
            if stsd_bytes > MAX_STSD_BYTES:
                raise InvalidRequest(
                    f"describes its tracks in {stsd_bytes} bytes; at most {MAX_STSD_BYTES} are read"
                )
        elif name in MOST:
            most, what = MOST[name]
            counts[name] += _count(raw, name, at, end)
            if counts[name] > most:
                refused = f"at most {most} are read" if most else "none is read"
                raise InvalidRequest(f"has {counts[name]} {what} ({name.decode()}); {refused}")


def _count(raw: bytes, name: bytes, at: int, end: int) -> int:
    """The entries of the box whose content is between `at` and `end`, at most those it has room for
    if FFmpeg reads no more."""
    version = raw[at] if at < end else 0
    if name == b"elst":
        return min(_number(raw, at + 4, 4), (end - at) // (20 if version == 1 else 12))
    if name == b"keys":
        return min(_number(raw, at + 4, 4), (end - at) // 8)
    if name == b"iloc":
        return _number(raw, at + 6, 2 if version < 2 else 4)
    if name == b"iinf":
        return _number(raw, at + 4, 4 if version else 2)
    return 1


def _number(raw: bytes, at: int, size: int) -> int:
    return int.from_bytes(raw[at : at + size], "big")


def _boxes(raw: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Name, begin and end of the content of each box, the inner ones too, as FFmpeg finds them."""
    count, open_ranges = 0, [(0, len(raw), 1)]
    while open_ranges:
        at, end, depth = open_ranges.pop()
        while at + HEAD_BYTES <= end:
            count += 1
            if count > MAX_BOXES:
                raise InvalidRequest(f"has more than {MAX_BOXES} boxes, which are not read")
            size, name, head = box_head(raw, at)
            begin = at + head
            last = end if size == 0 else min(at + size, end)
            if last < begin:
                break
            yield name, begin, last
            if name in _HIDING and raw[begin + 4 : begin + 8] in _FIRST:
                name = b"moov"
            if name in _PARENTS and depth < MAX_DEPTH:
                first = _first_of_meta(raw, begin, last) if name == b"meta" else begin
                open_ranges.append((first, last, depth + 1))
            at = last


def _first_of_meta(raw: bytes, at: int, end: int) -> int:
    """Where the first box of metadata begins: the first `hdlr` at a multiple of four bytes."""
    found = raw.find(b"hdlr", at, end)
    while found >= 0 and (found - at) % 4:
        found = raw.find(b"hdlr", found + 1, end)
    return found - 4 if found >= 0 else end
