"""Films whose headers have very many entries: which are refused, and what is not counted."""

from __future__ import annotations

import io
import random
import struct

import av
import pytest

from predictors.errors import InvalidRequest
from predictors.protocol.films import decode
from predictors.protocol.films.decode import probe_frames
from predictors.protocol.films.entries import (
    ELEMENTS,
    MAX_BOXES,
    MAX_ELEMENTS,
    MAX_STSD_BYTES,
    check_entry_counts,
)
from predictors.protocol.images.kinds import MATROSKA, MP4
from predictors.settings import FilmLimits
from tests.chat.films import Clip

CLIP = Clip().file()
WEBM = Clip("vp8").file()
EDIT = struct.pack(">IiI", 1, 0, 0x10000)


def box(name: bytes, *content: bytes, size: int | None = None) -> bytes:
    body = b"".join(content)
    return struct.pack(">I4s", len(body) + 8 if size is None else size, name) + body


def nested(content: bytes, *names: bytes) -> bytes:
    """`content` in boxes of these names, the innermost last."""
    for name in reversed(names):
        content = box(name, content)
    return content


def table(name: bytes, count: int, entry: bytes = EDIT, told: int | None = None) -> bytes:
    """A box with a version, the number of entries that it tells, and `count` of them."""
    return box(name, struct.pack(">II", 0, count if told is None else told), entry * count)


def with_edits(count: int) -> bytes:
    """A film with one edit list of so many edits, each of the whole film."""
    at = CLIP.index(b"elst") - 4
    size = struct.unpack_from(">I", CLIP, at)[0]
    new = table(b"elst", count, struct.pack(">IiI", 1500, 0, 0x10000))
    raw = bytearray(CLIP[:at] + new + CLIP[at + size :])
    for name in (b"moov", b"trak", b"edts"):
        at_size = raw.index(name) - 4
        struct.pack_into(
            ">I", raw, at_size, struct.unpack_from(">I", raw, at_size)[0] + len(new) - size
        )
    return bytes(raw)


EDITS = table(b"elst", 1025)
METADATA = box(b"hdlr", bytes(8), b"mdta", bytes(13))
REFUSED = {
    "edits": (nested(EDITS, b"moov", b"trak", b"edts"), r"has 1025 edits \(elst\); at most 1024"),
    "edits of two tracks": (
        box(b"moov", *[nested(table(b"elst", 600), b"trak", b"edts")] * 2),
        "has 1200 edits",
    ),
    "edits of 64 bits": (
        box(b"elst", struct.pack(">BxxxI", 1, 1025), bytes(20) * 1025),
        "has 1025 edits",
    ),
    "edits in a box that tells more than there is": (
        box(b"moov", box(b"elst", EDITS[8:], size=2**32 - 1)),
        "has 1025 edits",
    ),
    "edits in a box with a size of 64 bits": (
        box(b"elst", struct.pack(">Q", len(EDITS) + 8), EDITS[8:], size=1),
        "has 1025 edits",
    ),
    "edits in a box up to the end": (box(b"moov", EDITS, size=0), "has 1025 edits"),
    "edits in a header that hides": (
        box(b"free", box(b"mvhd", bytes(100)), EDITS),
        "has 1025 edits",
    ),
    "edits in metadata": (
        nested(bytes(4) + METADATA + EDITS, b"moov", b"meta"),
        "has 1025 edits",
    ),
    "a compressed header": (nested(b"", b"moov", b"cmov"), r"compressed headers .*; none is read"),
    "names of metadata": (
        nested(bytes(4) + METADATA + table(b"keys", 4097, bytes(8)), b"moov", b"meta"),
        "has 4097 names of metadata",
    ),
    "items of metadata": (nested(box(b"----") * 4097, b"moov", b"udta"), "has 4097 items of meta"),
    "keys of encryption": (nested(box(b"pssh") * 1025, b"moov"), "has 1025 keys of encryption"),
    "items in 16 bits": (box(b"iloc", bytes(6), b"\xff\xff"), "has 65535 items"),
    "items in 32 bits": (box(b"iloc", b"\2", bytes(5), b"\xff" * 4), "has 4294967295 items"),
    "names of items": (box(b"iinf", b"\1\0\0\0\0\0\4\1"), "has 1025 items"),
    "properties of items": (
        nested(bytes(4) + METADATA + box(b"iprp"), b"meta"),
        r"properties of pictures \(iprp\); none is read",
    ),
    "fragments": (box(b"moof") * 65_537, "has 65537 fragments"),
    "a large description": (
        nested(bytes(MAX_STSD_BYTES + 1), b"moov", b"trak", b"stsd"),
        f"in {MAX_STSD_BYTES + 1} bytes; at most {MAX_STSD_BYTES}",
    ),
    "boxes": (nested(box(b"free") * MAX_BOXES, b"moov"), f"more than {MAX_BOXES} boxes"),
}


@pytest.mark.parametrize(("raw", "expected"), REFUSED.values(), ids=REFUSED)
def test_a_header_with_more_entries_than_are_read_is_refused_with_the_numbers(
    raw: bytes, expected: str
) -> None:
    with pytest.raises(InvalidRequest, match=expected):
        check_entry_counts(raw, MP4)


TAKEN = {
    "an edit list that tells more than it has room for": table(b"elst", 3, told=2**32 - 1),
    "the name of a table among the frames": box(b"mdat", EDITS),
    "the name of a table in a text": nested(box(b"\xa9nam", b"Vogelstimmen" * 999), b"moov"),
    "boxes deeper than FFmpeg reads": nested(EDITS, *[b"udta"] * 11),
    "metadata without a handler": nested(bytes(4) + EDITS, b"meta"),
    "a handler between two words": nested(b"\0" + METADATA + EDITS, b"meta"),
    "a box that is none": box(b"moov", EDITS, size=3),
    "a rest": b"\0\0",
}


@pytest.mark.parametrize("raw", TAKEN.values(), ids=TAKEN)
def test_what_ffmpeg_reads_no_entry_of_is_not_counted(raw: bytes) -> None:
    check_entry_counts(raw, MP4)


def test_a_film_of_many_edits_is_read_and_one_of_more_is_refused() -> None:
    limits = FilmLimits(max_duration_s=10_000.0)
    shown = probe_frames(with_edits(1), limits).frames
    assert shown in (10, 12)  # an edit may begin with frames that are shown later
    assert probe_frames(with_edits(1024), limits).frames == 1024 * shown
    with pytest.raises(InvalidRequest, match="video has 1025 edits"):
        probe_frames(with_edits(1025), limits)


@pytest.mark.parametrize("element", ELEMENTS, ids=list(ELEMENTS.values()))
def test_matroska_with_very_many_elements_is_refused_with_the_numbers(element: bytes) -> None:
    probe_frames(WEBM + element * 4000, FilmLimits())
    count = MAX_ELEMENTS + 10
    with pytest.raises(InvalidRequest, match=rf"seems to have 41\d\d {ELEMENTS[element]}; at most"):
        probe_frames(WEBM + element * count, FilmLimits())


def test_an_id_that_comes_up_by_chance_does_not_count() -> None:
    check_entry_counts(random.Random(0).randbytes(2**24), MATROSKA)


def test_cues_are_not_read() -> None:
    """FFmpeg moves all later ones for each that comes before them."""
    cue = bytes.fromhex("bb8c b382 0000 b786 f78101 f18100")
    cues = b"".join(cue.replace(b"\xb3\x82\0\0", b"\xb3\x82" + bytes([1, i])) for i in range(9))
    extra = b"\x1c\x53\xbb\x6b" + bytes([0x40, len(cues)]) + cues
    at, first = WEBM.index(b"\x18\x53\x80\x67") + 5, WEBM.index(b"\x1f\x43\xb6\x75")
    length = int.from_bytes(WEBM[at : at + 7], "big") + len(extra)
    raw = WEBM[:at] + length.to_bytes(7, "big") + WEBM[at + 7 : first] + extra + WEBM[first:]
    with av.open(io.BytesIO(raw)) as plain:
        assert len(plain.streams.video[0].index_entries) >= 9
    with decode._opened(MATROSKA, raw, FilmLimits()) as (_, stream):
        assert len(stream.index_entries) == 1  # of the frame that is read to know its codec
    assert probe_frames(raw, FilmLimits()).frames == 12
