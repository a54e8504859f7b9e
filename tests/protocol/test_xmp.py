"""XMP packets of any text, read back by an XML parser, Pillow and exiftool."""

from __future__ import annotations

import io
import json
import shutil
import struct
import subprocess
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from predictors.protocol.png import write_png
from predictors.protocol.xmp import (
    MAX_PACKET,
    NAMESPACES,
    TRAINED,
    Origin,
    escaped,
    jpeg_with_xmp,
    xmp_packet,
)

RDF = "{http://www.w3.org/1999/02/22-rdf-syntax-ns#}"
IPTC, XMP = f"{{{NAMESPACES['Iptc4xmpExt']}}}", f"{{{NAMESPACES['xmp']}}}"
OWN = f"{{{NAMESPACES['vp']}}}"
PLAIN = Origin(TRAINED, "tool 1.0", "flux")
ANY_TEXT = st.text(st.characters(exclude_categories=()), max_size=200)
PIXELS = np.random.default_rng(0).integers(0, 256, (32, 48, 3), dtype=np.uint8)
NASTY = "a ]]> b <x>&amp; \x00\x0b\ufffe \r\n\t <!-- --> <?p ?> &#0; 😀 \"'"
KINDS = ("png", "jpeg", "webp")


def full(prompt: str, **parameters: str) -> Origin:
    return Origin(TRAINED, "tool 1.0", "flux", prompt, parameters)


def properties(packet: bytes) -> dict[str, str]:
    """Properties by name with namespace, read by a parser of XML."""
    [description] = ElementTree.fromstring(packet).iter(f"{RDF}Description")
    return {each.tag: each.text or "" for each in description}


def marked(kind: str, origin: Origin) -> bytes:
    """A file with the packet of `origin`."""
    packet = xmp_packet(origin)
    if kind == "png":
        return write_png(PIXELS, 1, packet)
    file = io.BytesIO()
    Image.fromarray(PIXELS).save(file, kind.upper(), xmp=packet if kind == "webp" else b"")
    found = file.getvalue()
    return jpeg_with_xmp(found, origin, packet) if kind == "jpeg" else found


def as_xml_holds(text: str) -> str:
    """The text with U+FFFD for each character that XML 1.0 forbids."""
    return "".join(c if is_xml(ord(c)) else "\ufffd" for c in text)


def is_xml(code: int) -> bool:
    """The production `Char` of XML 1.0."""
    return (
        code in (9, 10, 13)
        or 0x20 <= code <= 0xD7FF
        or 0xE000 <= code <= 0xFFFD
        or 0x10000 <= code <= 0x10FFFF
    )


# -- packets ---------------------------------------------------------------------------------------
def test_the_mark_says_source_tool_and_model_and_nothing_else() -> None:
    assert properties(xmp_packet(PLAIN)) == {
        f"{IPTC}DigitalSourceType": "http://cv.iptc.org/newscodes/digitalsourcetype/"
        "trainedAlgorithmicMedia",
        f"{XMP}CreatorTool": "tool 1.0",
        f"{IPTC}AISystemUsed": "flux",
    }


def test_the_packet_is_framed_as_the_standard_says() -> None:
    packet = xmp_packet(PLAIN).decode()
    assert packet.startswith('<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>')
    assert packet.endswith('<?xpacket end="r"?>')
    assert len(packet) < 1024


@given(ANY_TEXT)
def test_any_text_comes_back_from_xml_as_far_as_xml_can_hold_it(text: str) -> None:
    found = properties(xmp_packet(full(text, seed=text)))
    assert found[f"{IPTC}AIPromptInformation"] == as_xml_holds(text)
    assert found[f"{OWN}seed"] == as_xml_holds(text)


@pytest.mark.parametrize("unit", ["&", "<", "\r", "\x00", "]]>", "é", "😀"], ids=[*"abcdefg"])
def test_a_packet_has_at_most_five_bytes_for_each_of_a_text(unit: str) -> None:
    text = unit * (32 * 1024 // len(unit.encode()))
    assert len(xmp_packet(full(text))) <= 5 * len(text.encode()) + 1024
    assert len(escaped(text).encode()) <= 5 * len(text.encode())


# -- JPEG ------------------------------------------------------------------------------------------
def segments(file: bytes) -> list[tuple[int, bytes]]:
    """Marker and body of each segment before the picture's data."""
    place, found = 2, []
    while file[place + 1] != 0xDA:
        assert file[place] == 0xFF
        (size,) = struct.unpack_from(">H", file, place + 2)
        found.append((file[place + 1], file[place + 4 : place + 2 + size]))
        place += 2 + size
    return found


def test_the_packet_of_a_jpeg_file_follows_jfifs_segment() -> None:
    (first, head), (second, body), *_ = segments(marked("jpeg", PLAIN))
    assert (first, head[:5], second) == (0xE0, b"JFIF\0", 0xE1)
    assert body == b"http://ns.adobe.com/xap/1.0/\0" + xmp_packet(PLAIN)


def test_a_jpeg_file_without_jfifs_segment_gets_the_packet_first() -> None:
    file = b"\xff\xd8\xff\xdb\x00\x03x\xff\xda"
    assert [marker for marker, _ in segments(jpeg_with_xmp(file, PLAIN, b"p"))] == [0xE1, 0xDB]


@pytest.mark.parametrize("over", [0, 1, 200_000])
def test_details_beyond_one_segment_follow_in_others_and_the_mark_stays(over: int) -> None:
    room = MAX_PACKET - len(xmp_packet(full("")))
    origin = full("x" * (room + over))
    bodies = [body for marker, body in segments(marked("jpeg", origin)) if marker == 0xE1]
    main = bodies[0].partition(b"\0")[2]
    if not over:
        assert bodies[1:] == []
        assert main == xmp_packet(origin)
        return
    name = properties(main).pop(f"{{{NAMESPACES['xmpNote']}}}HasExtendedXMP")
    assert properties(main).items() >= properties(xmp_packet(PLAIN)).items()
    whole = b""
    for body in bodies[1:]:
        kind, _, rest = body.partition(b"\0")
        size, start = struct.unpack_from(">II", rest, 32)
        assert (kind, rest[:32]) == (b"http://ns.adobe.com/xmp/extension/", name.encode())
        assert start == len(whole)
        whole += rest[40:]
        assert len(body) <= 0xFFFF - 2
    assert len(whole) == size
    assert properties(whole)[f"{IPTC}AIPromptInformation"] == origin.prompt


# -- readers of others -----------------------------------------------------------------------------
@pytest.mark.parametrize("kind", KINDS)
def test_pillow_reads_the_mark_and_the_same_pixels(kind: str) -> None:
    plain = io.BytesIO()
    Image.fromarray(PIXELS).save(plain, kind.upper())
    with Image.open(io.BytesIO(marked(kind, PLAIN))) as image, Image.open(plain) as other:
        found = image.getxmp()["xmpmeta"]["RDF"]["Description"]
        assert np.array_equal(np.asarray(image), np.asarray(other))
    assert found["DigitalSourceType"] == TRAINED
    assert (found["CreatorTool"], found["AISystemUsed"]) == ("tool 1.0", "flux")


@pytest.fixture(scope="module")
def exiftool() -> str:
    found = shutil.which("exiftool")
    if found is None:
        pytest.skip("needs exiftool (Debian: libimage-exiftool-perl)")
    return found


@pytest.mark.parametrize(
    "prompt",
    [None, NASTY, "x" * 32_768, "&\r" * 16_384],
    ids=["mark", "nasty", "long", "escapes"],
)
def test_exiftool_reads_back_what_was_written(
    exiftool: str, tmp_path: Path, prompt: str | None
) -> None:
    origin = PLAIN if prompt is None else full(prompt, seed="7", negative_prompt=prompt)
    names = [tmp_path / f"picture.{kind}" for kind in KINDS]
    for name, kind in zip(names, KINDS, strict=True):
        name.write_bytes(marked(kind, origin))
    ran = subprocess.run(
        [exiftool, "-json", "-G1", "-a", *map(str, names)], capture_output=True, check=True
    )
    for found in json.loads(ran.stdout):
        assert not [key for key in found if "Warning" in key or "Error" in key]
        assert found["XMP-iptcExt:DigitalSourceType"] == TRAINED
        assert found["XMP-xmp:CreatorTool"] == "tool 1.0"
        assert _told(found, "AISystemUsed") == "flux"
        if prompt is not None:
            assert _told(found, "AIPromptInformation") == as_xml_holds(prompt)
            assert found["XMP-vp:Negative_prompt"] == as_xml_holds(prompt)
            assert found["XMP-vp:Seed"] == 7


def _told(found: dict[str, Any], name: str) -> object:
    # older releases do not list IPTC's properties of 2025, and name them as they are written
    [key] = [key for key in found if key.lower() == f"xmp-iptcext:{name}".lower()]
    return found[key]
