"""XMP packets about the origin of a picture, and their places in PNG and JPEG files.

A packet is RDF in XML (ISO 16684-1) with properties of IPTC's standard for photographs. Texts of
callers are escaped here; characters that XML 1.0 can't hold become U+FFFD.
"""

from __future__ import annotations

import hashlib
import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

SOURCE_TYPES = "http://cv.iptc.org/newscodes/digitalsourcetype/"
TRAINED = f"{SOURCE_TYPES}trainedAlgorithmicMedia"
"""Drawn by a model that was trained on captured content."""
COMPOSITE = f"{SOURCE_TYPES}compositeWithTrainedAlgorithmicMedia"
"""Some of it drawn by such a model, as with inpainting."""

OWN = "vp"
NAMESPACES = {
    "xmp": "http://ns.adobe.com/xap/1.0/",
    "Iptc4xmpExt": "http://iptc.org/std/Iptc4xmpExt/2008-02-29/",
    OWN: "urn:vision-predictors:generation/1.0/",
    "xmpNote": "http://ns.adobe.com/xmp/note/",
}
"""By their usual prefixes; `OWN` has the parameters of a request under the API's names."""
PNG_KEYWORD = b"XML:com.adobe.xmp"
_HEAD = '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>'
_TAIL = '<?xpacket end="r"?>'

_FORBIDDEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")
# a parser would make a line feed of a carriage return, and `]]>` is not allowed in text
_ESCAPES = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;", "\r": "&#13;"})

APP1 = b"\xff\xe1"
APP0 = b"\xff\xe0"
MAX_SEGMENT = 0xFFFF - 2  # bytes of a JPEG segment behind its two bytes of length
STANDARD = b"http://ns.adobe.com/xap/1.0/\x00"
EXTENSION = b"http://ns.adobe.com/xmp/extension/\x00"
MAX_PACKET = MAX_SEGMENT - len(STANDARD)  # bytes of a packet that one segment of a JPEG file holds
MAX_PORTION = MAX_SEGMENT - len(EXTENSION) - 32 - 8  # bytes of an extension in one segment


@dataclass(frozen=True, slots=True)
class Origin:
    """How a picture was made, as its file says it."""

    source_type: str
    """`TRAINED` or `COMPOSITE`."""
    tool: str
    """Name and version of the program."""
    model: str
    """Name under which the model is served."""
    prompt: str | None = None
    """None where it is kept private."""
    parameters: Mapping[str, str] = field(default_factory=dict)
    """Parameters of the request by their names in the API, which must be XML names."""

    @property
    def mark(self) -> dict[str, str]:
        """Properties of every picture."""
        return {
            "Iptc4xmpExt:DigitalSourceType": self.source_type,
            "xmp:CreatorTool": self.tool,
            "Iptc4xmpExt:AISystemUsed": self.model,
        }

    @property
    def details(self) -> dict[str, str]:
        """Properties that only full metadata has."""
        prompt = {} if self.prompt is None else {"Iptc4xmpExt:AIPromptInformation": self.prompt}
        return prompt | {f"{OWN}:{name}": value for name, value in self.parameters.items()}


def xmp_packet(origin: Origin) -> bytes:
    """The packet as UTF-8: five times the bytes of the texts at most, and less than 1 KiB more
    beside short names."""
    return _packet(origin.mark | origin.details)


def _packet(properties: Mapping[str, str]) -> bytes:
    return f"{_HEAD}{_meta(properties)}{_TAIL}".encode()


def _meta(properties: Mapping[str, str]) -> str:
    used = dict.fromkeys(name.partition(":")[0] for name in properties)
    spaces = "".join(f' xmlns:{prefix}="{NAMESPACES[prefix]}"' for prefix in used)
    body = "".join(f"<{name}>{escaped(text)}</{name}>" for name, text in properties.items())
    return (
        '<x:xmpmeta xmlns:x="adobe:ns:meta/">'
        '<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        f'<rdf:Description rdf:about=""{spaces}>{body}</rdf:Description></rdf:RDF></x:xmpmeta>'
    )


def escaped(text: str) -> str:
    """Any text as the content of an XML 1.0 element."""
    return _FORBIDDEN.sub("\ufffd", text).translate(_ESCAPES)


# -- places in files -------------------------------------------------------------------------------
def png_text(packet: bytes) -> bytes:
    """The body of the iTXt chunk that holds a packet: keyword, not compressed, no language."""
    return PNG_KEYWORD + b"\x00\x00\x00\x00\x00" + packet


def jpeg_with_xmp(file: bytes, origin: Origin, packet: bytes) -> bytes:
    """A JPEG file with the packet of `origin` behind its first segment.

    Where the packet does not fit into one segment, the details follow in further ones, as the
    standard's extended XMP; the mark itself is always in the first.
    """
    if len(packet) <= MAX_PACKET:
        segments = _segment(STANDARD + packet)
    else:
        segments = b"".join(_extended(origin))
    place = 2  # behind the marker that begins the file, and behind JFIF's segment, if there is one
    if file[2:4] == APP0:
        place += 2 + int(struct.unpack_from(">H", file, 4)[0])
    return b"".join((file[:place], segments, file[place:]))


def _extended(origin: Origin) -> Iterator[bytes]:
    extension = _meta(origin.details).encode()
    name = hashlib.md5(extension, usedforsecurity=False).hexdigest().upper()
    yield _segment(STANDARD + _packet(origin.mark | {"xmpNote:HasExtendedXMP": name}))
    for start in range(0, len(extension), MAX_PORTION):
        place = struct.pack(">II", len(extension), start)
        portion = extension[start : start + MAX_PORTION]
        yield _segment(EXTENSION + name.encode() + place + portion)


def _segment(body: bytes) -> bytes:
    return APP1 + struct.pack(">H", len(body) + 2) + body
