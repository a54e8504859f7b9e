"""Malformed and malicious pictures, each with the error message that it must get."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from io import BytesIO

from PIL import Image

from tests.http.echo import LIMITS, png

HEADER = "whose header is damaged"
DAMAGED = "is damaged or cut short"


@dataclass(frozen=True)
class Bad:
    """A file and words of its error message."""

    name: str
    raw: bytes
    words: str
    status: int = 400


def chunk(kind: bytes, payload: bytes) -> bytes:
    """A PNG chunk with its checksum."""
    checksum = struct.pack(">I", zlib.crc32(kind + payload))
    return struct.pack(">I", len(payload)) + kind + payload + checksum


def png_of(width: int, height: int, *chunks: bytes, depth: int = 8, color: int = 2) -> bytes:
    """A PNG whose header says `width` x `height`, with any data."""
    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    end = chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + b"".join(chunks) + end


def saved(kind: str, frames: int = 1, size: tuple[int, int] = (8, 8), **options: object) -> bytes:
    """A file as Pillow writes it."""
    pictures = [Image.new("RGB", size, (60 * i, 0, 99)) for i in range(frames)]
    file = BytesIO()
    more = {"save_all": True, "append_images": pictures[1:]} if frames > 1 else {}
    pictures[0].save(file, kind, **more, **options)
    return file.getvalue()


def many_scans(raw: bytes, scans: int = 200) -> bytes:
    """A JPEG whose one scan is repeated."""
    start = raw.index(b"\xff\xda")
    return raw[:-2] + raw[start:-2] * scans + raw[-2:]


GOOD = png(size=(64, 64))
JPEG = saved("JPEG", size=(500, 500), quality=95)
ROWS = zlib.compress(bytes(100))
SVG = b'<?xml version="1.0"?><!DOCTYPE x [<!ENTITY e SYSTEM "file:///etc/passwd">]><svg>&e;</svg>'
PSD = b"8BPS\0\1" + bytes(6) + struct.pack(">HIIHH", 3, 9, 9, 8, 3)
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%BeginBinary: -1\n"
BOMB = chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(50_000_000), 9))
ANIMATION = chunk(b"acTL", struct.pack(">II", 500, 0))
APNG = saved("PNG", frames=3)
BAD_CRC = GOOD[:29] + b"\0\0\0\0" + GOOD[33:]
TALL = f"is 1x4001 pixels; a side may have {LIMITS.max_side}"

BAD_PICTURES = [
    Bad("text", b"a red circle", "is text; taken are pictures in PNG"),
    Bad("HTML", b"<html><body>404</body></html>", "is an HTML page"),
    Bad("SVG with an external entity", SVG, "is an SVG drawing"),
    Bad("zeros", bytes(1000), "is no picture of a known kind"),
    Bad("animated GIF", saved("GIF", frames=5), "an animation of 5 frames"),
    Bad("ICO", saved("ICO", size=(16, 16)), "is a Windows icon"),
    Bad("DDS", saved("DDS"), "is a DDS texture"),
    Bad("PPM", saved("PPM"), "is a PNM picture"),
    Bad(
        "PSD", b"8BPS\0\1" + bytes(6) + struct.pack(">HIIHH", 3, 9, 9, 8, 3), "is a Photoshop file"
    ),
    Bad("EPS", EPS, "is a PostScript document"),
    Bad("FITS", b"SIMPLE  =                    T" + bytes(2850), "is a FITS file"),
    Bad("JPEG 2000", b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(100), "is a JPEG 2000 picture"),
    Bad("PDF", b"%PDF-1.7\n", "is a PDF document"),
    Bad("ZIP", b"PK\3\4" + bytes(100), "is a ZIP archive"),
    Bad("PNG signature alone", GOOD[:8], HEADER),
    Bad("PNG cut in its header", GOOD[:20], HEADER),
    Bad("PNG with a wrong header checksum", BAD_CRC, HEADER),
    Bad("PNG cut in its data", GOOD[:60], DAMAGED),
    Bad("PNG without data", png_of(8, 8), DAMAGED),
    Bad("PNG whose data is not compressed", png_of(8, 8, chunk(b"IDAT", b"x" * 99)), DAMAGED),
    Bad("PNG with too little data", png_of(64, 64, chunk(b"IDAT", ROWS)), DAMAGED),
    Bad("PNG of 0x0", png_of(0, 0), HEADER),
    Bad("PNG of 50000x50000", png_of(50_000, 50_000), "pixels"),
    Bad("PNG of 13000x13000", png_of(13_000, 13_000), "pixels"),
    Bad("PNG of 1200x1200", png_of(1200, 1200), "1440000 in all; at most 1000000"),
    Bad("PNG of 2147483647x1", png_of(2**31 - 1, 1), "pixels"),
    Bad("PNG of 1x4001", png_of(1, 4001), TALL),
    Bad("PNG of 1x100", png(size=(1, 100)), "the longer side may be 50 times the shorter"),
    Bad("PNG of an unknown colour type", png_of(8, 8, color=5), HEADER),
    Bad("PNG with a 50 MB text and no data", png_of(8, 8, BOMB), DAMAGED),
    Bad("PNG that says it has 500 frames", png_of(8, 8, ANIMATION), "an animation of 500 frames"),
    Bad("animated PNG", APNG, "an animation of 3 frames"),
    Bad("animated WebP", saved("WEBP", frames=4), "an animation of 4 frames"),
    Bad("WebP cut short", saved("WEBP")[:30], HEADER),
    Bad("WebP header alone", b"RIFF\xff\xff\xff\x7fWEBPVP8 ", HEADER),
    Bad("JPEG signature alone", JPEG[:3], HEADER),
    Bad("JPEG cut in its header", JPEG[:100], HEADER),
    Bad("JPEG cut in its data", JPEG[:-500], DAMAGED),
    Bad("JPEG of 201 scans", many_scans(saved("JPEG", progressive=True)), "100 scans"),
    Bad("more bytes than are taken", GOOD + bytes(LIMITS.max_bytes), "bytes; at most 200000", 413),
]
