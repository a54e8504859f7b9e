"""Recognises a file by its first bytes: the pictures that are read, and by name what else comes.

Nothing here parses a file. Names have their article, since errors say them: "is a PDF document".
"""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass
from typing import NamedTuple

HEAD = 1024  # bytes that are looked at


@dataclass(frozen=True)
class Kind:
    """A kind of file. `codec` is Pillow's name of the format, empty for one that is not read."""

    name: str
    codec: str = ""


class CleanFile(NamedTuple):
    """A file with only what decoding needs. `orientation` is EXIF's number, None if not known."""

    file: bytes
    orientation: int | None = None


PNG = Kind("a PNG picture", "PNG")
JPEG = Kind("a JPEG picture", "JPEG")
WEBP = Kind("a WebP picture", "WEBP")
GIF = Kind("a GIF picture", "GIF")
BMP = Kind("a BMP picture", "BMP")
TIFF = Kind("a TIFF picture", "TIFF")
AVIF = Kind("an AVIF picture", "AVIF")
HEIC = Kind("a HEIC picture", "HEIF")
UNKNOWN = Kind("no picture of a known kind")
TEXT = Kind("text")

ACCEPTED = "PNG, JPEG, WebP, GIF, BMP, TIFF, AVIF or HEIC"

_RAW_PHOTO = Kind("a camera's raw file")
_ICON, _CURSOR = Kind("a Windows icon (ICO)"), Kind("a Windows cursor")
_HEIF = Kind("a HEIF picture that is neither HEIC nor AVIF")
_JPEG_XL, _JPEG_2000 = Kind("a JPEG XL picture"), Kind("a JPEG 2000 picture")
MP4, MATROSKA = Kind("an MP4 video"), Kind("a WebM or Matroska video")  # `FILMS`, not pictures
_MPEG = Kind("an MPEG video")
_MP3 = Kind("an MP3 recording")
_ZIP = Kind("a ZIP archive or an Office document")
_SVG, _HTML, _XML = Kind("an SVG drawing"), Kind("an HTML page"), Kind("an XML text")
_JSON, _PDF = Kind("a JSON text"), Kind("a PDF document")
_PNM = Kind("a PNM picture")

_BY_START: list[tuple[bytes, Kind]] = [
    (b"\x89PNG\r\n\x1a\n", PNG),
    (b"\xff\xd8\xff", JPEG),
    (b"GIF87a", GIF),
    (b"GIF89a", GIF),
    (b"II*\0\x10\0\0\0CR", _RAW_PHOTO),
    (b"II*\0", TIFF),
    (b"MM\0*", TIFF),
    (b"II+\0", TIFF),
    (b"MM\0+", TIFF),
    (b"%PDF-", _PDF),
    (b"%!PS", Kind("a PostScript document")),
    (b"\xc5\xd0\xd3\xc6", Kind("a PostScript document")),
    (b"8BPS", Kind("a Photoshop file (PSD)")),
    (b"\0\0\x01\0", _ICON),
    (b"\0\0\x02\0", _CURSOR),
    (b"\xff\x0a", _JPEG_XL),
    (b"\0\0\0\x0cJXL \r\n\x87\n", _JPEG_XL),
    (b"\0\0\0\x0cjP  \r\n\x87\n", _JPEG_2000),
    (b"\xff\x4f\xff\x51", _JPEG_2000),
    (b"II\xbc", Kind("a JPEG XR picture")),
    (b"\x8aMNG\r\n\x1a\n", Kind("an MNG animation")),
    (b"IIRO", _RAW_PHOTO),
    (b"IIRS", _RAW_PHOTO),
    (b"MMOR", _RAW_PHOTO),
    (b"IIU\0", _RAW_PHOTO),
    (b"II\x1a\0\0\0HEAPCCDR", _RAW_PHOTO),
    (b"FUJIFILMCCD-RAW", _RAW_PHOTO),
    (b"FOVb", _RAW_PHOTO),
    (b"\0MRM", _RAW_PHOTO),
    (b"DDS ", Kind("a DDS texture")),
    (b"qoif", Kind("a QOI picture")),
    (b"\x76\x2f\x31\x01", Kind("an OpenEXR picture")),
    (b"#?RADIANCE", Kind("a Radiance HDR picture")),
    (b"gimp xcf", Kind("a GIMP file (XCF)")),
    (b"icns", Kind("a macOS icon (ICNS)")),
    (b"SIMPLE  =", Kind("a FITS file")),
    (b"\xd7\xcd\xc6\x9a", Kind("a Windows metafile (WMF)")),
    (b"AT&TFORM", Kind("a DjVu document")),
    (b"PK\x03\x04", _ZIP),
    (b"PK\x05\x06", _ZIP),
    (b"\x1f\x8b", Kind("a gzip archive")),
    (b"BZh", Kind("a bzip2 archive")),
    (b"\xfd7zXZ\0", Kind("an xz archive")),
    (b"\x28\xb5\x2f\xfd", Kind("a Zstandard archive")),
    (b"7z\xbc\xaf\x27\x1c", Kind("a 7-Zip archive")),
    (b"Rar!\x1a\x07", Kind("a RAR archive")),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", Kind("an old Office document")),
    (b"{\\rtf", Kind("an RTF document")),
    (b"\x1a\x45\xdf\xa3", MATROSKA),
    (b"OggS", Kind("an Ogg file")),
    (b"FLV\x01", Kind("a Flash video")),
    (b"\0\0\x01\xba", _MPEG),
    (b"\0\0\x01\xb3", _MPEG),
    (b"ID3", _MP3),
    (b"\xff\xfb", _MP3),
    (b"fLaC", Kind("a FLAC recording")),
    (b"\x93NUMPY", Kind("a NumPy array")),
    (b"\x7fELF", Kind("a program (ELF)")),
    (b"SQLite format 3\0", Kind("an SQLite database")),
]
_BY_FIRST_BYTE = {
    start[:1]: [entry for entry in _BY_START if entry[0][:1] == start[:1]] for start, _ in _BY_START
}
_RIFF = {
    b"WEBP": WEBP,
    b"AVI ": Kind("an AVI video"),
    b"WAVE": Kind("a WAV recording"),
}
FILMS = (MP4, MATROSKA)
_OLD_MOVIES = (b"moov", b"mdat", b"wide", b"free", b"skip")
"""First boxes of QuickTime files, which had no type once."""
_AVIF_BRANDS = {b"avif", b"avis"}
_HEIF_BRANDS = {b"mif1", b"mif2", b"msf1", b"miaf", b"jpeg", b"jpgs"}
_HEIC_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"}
_BMP_HEADERS = {12, 40, 52, 56, 64, 108, 124}
_PNM_START = re.compile(rb"P[1-7][ \t\r\n]")
_BASE64 = re.compile(rb"[A-Za-z0-9+/_-]{16,}+")
_BINARY = bytes(set(range(32)) - set(b"\t\n\v\f\r\x1b")) + b"\x7f"


def kind_of(raw: bytes) -> Kind:
    """The kind of a file, from its first `HEAD` bytes."""
    return _signed(raw) or _text(raw[:HEAD]) or UNKNOWN


def is_readable(raw: bytes) -> bool:
    """True if the first bytes are those of a picture that is read."""
    kind = _signed(raw)
    return kind is not None and bool(kind.codec)


def film_kind(raw: bytes) -> Kind:
    """The kind of a file that is expected to be a film."""
    kind = kind_of(raw)
    return MP4 if kind is UNKNOWN and raw[4:8] in _OLD_MOVIES else kind


def is_film(raw: bytes) -> bool:
    """True if the first bytes are those of a film that is read."""
    return film_kind(raw) in FILMS


def _signed(raw: bytes) -> Kind | None:
    """The kind of a binary file, None for one without a known signature."""
    for start, kind in _BY_FIRST_BYTE.get(raw[:1], ()):
        # a TGA begins as a cursor does, with no pictures in it
        if raw.startswith(start) and (kind is not _CURSOR or raw[4:6] != b"\0\0"):
            return kind
    if raw[4:8] == b"ftyp":
        return _boxed(raw)
    if raw[:4] == b"RIFF":
        return _RIFF.get(raw[8:12])
    if raw[:2] == b"BM" and int.from_bytes(raw[14:18], "little") in _BMP_HEADERS:
        return BMP
    if _PNM_START.match(raw):
        return _PNM
    if raw[128:132] == b"DICM":
        return Kind("a DICOM file")
    if raw[:4] == b"\x01\0\0\0" and raw[40:44] == b" EMF":
        return Kind("a Windows metafile (EMF)")
    return None


def _boxed(raw: bytes) -> Kind:
    # ISO/IEC 14496-12: the size of the box, `ftyp`, the major brand, a version, all brands
    size = min(int.from_bytes(raw[:4], "big"), HEAD)
    brands = {raw[8:12], *(raw[i : i + 4] for i in range(16, size, 4))}
    if raw[8:12] == b"crx ":
        return _RAW_PHOTO
    if brands & _AVIF_BRANDS:
        return AVIF
    if brands & _HEIC_BRANDS:
        return HEIC
    return _HEIF if brands & _HEIF_BRANDS else MP4


def _text(head: bytes) -> Kind | None:
    """The kind of a text by its beginning, None for what is none."""
    if head[:2] in {b"\xff\xfe", b"\xfe\xff"}:
        return TEXT
    if b"%PDF-" in head:  # readers search the first kilobyte
        return _PDF
    if not head or head.translate(None, _BINARY) != head:
        return None
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if start.startswith(b"<"):
        if b"<svg" in start:
            return _SVG
        return _HTML if start.startswith((b"<!doctype html", b"<html")) else _XML
    if start.startswith((b"{", b"[")):
        return _JSON
    if start.startswith((b"data:", b"data%3a")):
        return Kind("a data URL as text, where the bytes of the file are expected")
    if start.startswith((b"http:", b"https:")):
        return Kind("a web address, and this server fetches none")
    return _encoded(head.lstrip()) or TEXT


def _encoded(head: bytes) -> Kind | None:
    found = _BASE64.match(head)
    if found is None:
        return None
    whole = found[0][: len(found[0]) // 4 * 4]
    try:
        kind = _signed(base64.b64decode(whole, altchars=b"-_"))
    except binascii.Error:
        return None
    if kind is None or kind is _PNM:
        return None
    return Kind(f"base64 text of {kind.name}, where the bytes of the file are expected")
