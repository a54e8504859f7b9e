"""Films that are cut short, by what they tell of their length, and lengths that are not told."""

from __future__ import annotations

import struct
from fractions import Fraction

import pytest

from predictors.errors import InvalidRequest
from predictors.protocol.films.decode import probe_frames
from predictors.protocol.films.wholeness import MAX_PARTS, check_whole
from predictors.protocol.images.kinds import MATROSKA, MP4
from predictors.settings import FilmLimits
from tests.chat.films import Clip

FRAMES = 60
FILMS = {
    kind: Clip(kind, FRAMES, rate=Fraction(10)).file(**options)
    for kind, options in (
        ("h264", {}),
        ("mov", {"movflags": "+frag_keyframe+empty_moov+skip_trailer"}),
        ("vp8", {}),
        ("vp9", {}),
    )
}


@pytest.mark.parametrize("kind", FILMS)
@pytest.mark.parametrize("part", [0.5, 0.85, 0.95, 0.99])
def test_a_film_of_which_the_end_is_missing_is_refused_with_the_bytes(
    kind: str, part: float
) -> None:
    whole = FILMS[kind]
    assert probe_frames(whole, FilmLimits()).frames == FRAMES
    raw = whole[: int(len(whole) * part)]
    with pytest.raises(InvalidRequest, match=r"cut short: it has \d+ bytes, .* of \d+ more"):
        probe_frames(raw, FilmLimits())


def box(name: bytes, size: int, content: bytes = b"") -> bytes:
    return struct.pack(">I4s", size, name) + content


TYPE = box(b"ftyp", 16, b"isom" + bytes(4))
EBML = b"\x1a\x45\xdf\xa3\x82ab"
SEGMENT = b"\x18\x53\x80\x67"
WHOLE = {
    "nothing": (MP4, b""),
    "up to the end": (MP4, TYPE + box(b"mdat", 0, bytes(9))),
    "a size of no box": (MP4, TYPE + box(b"mdat", 3)),
    "a large box": (MP4, TYPE + box(b"mdat", 1, struct.pack(">Q", 24) + bytes(8))),
    "a camera's own part behind the film": (MP4, TYPE + box(b"sefd", 2**31, b"x")),
    "rests of a head": (MP4, TYPE + b"\0\0"),
    "a segment of unknown length": (MATROSKA, EBML + SEGMENT + b"\x01" + b"\xff" * 7 + b"x"),
    "a segment of one unknown byte": (MATROSKA, EBML + SEGMENT + b"\xff" + b"x"),
    "a length of no form": (MATROSKA, EBML + SEGMENT + b"\x00" * 9),
    "a segment behind a void": (MATROSKA, EBML + b"\xec\x81x" + SEGMENT + b"\x82ab"),
}
CUT = {
    "a large box of 2^63 bytes": (MP4, TYPE + box(b"mdat", 1, struct.pack(">Q", 2**63) + b"x")),
    "a fragment": (MP4, TYPE + box(b"moof", 100, bytes(90))),
    "a segment": (MATROSKA, EBML + SEGMENT + b"\x83ab"),
    "a segment behind a void": (MATROSKA, EBML + b"\xec\x81x" + SEGMENT + b"\x42\x00ab"),
    "a head": (MATROSKA, b"\x1a\x45\xdf\xa3\x9fabc"),
}


@pytest.mark.parametrize(("kind", "raw"), WHOLE.values(), ids=WHOLE)
def test_a_file_that_does_not_end_early_is_left_to_the_decoder(kind: object, raw: bytes) -> None:
    check_whole(raw, kind)  # type: ignore[arg-type]


@pytest.mark.parametrize(("kind", "raw"), CUT.values(), ids=CUT)
def test_a_file_that_ends_early_is_cut_short(kind: object, raw: bytes) -> None:
    with pytest.raises(InvalidRequest, match="is cut short"):
        check_whole(raw, kind)  # type: ignore[arg-type]


def test_a_file_of_very_many_parts_is_refused() -> None:
    with pytest.raises(InvalidRequest, match=f"more than {MAX_PARTS} parts"):
        check_whole(TYPE + box(b"free", 8) * MAX_PARTS, MP4)
