"""Picture files for the traffic: drawn ones of every format, and photographs."""

from __future__ import annotations

import base64
import random
from functools import cache
from io import BytesIO

from PIL import Image, ImageDraw

NUM_PICTURES = 16
NUM_PHOTOS = 4
PHOTO_PIXELS = 50176
"""`max_pixels` of a photograph's request: a large file that is read at the size of the others."""
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
COLORS = ("red", "green", "blue", "yellow", "purple", "orange")


@cache
def _picture(number: int) -> tuple[bytes, bytes]:
    """A drawn picture of one of the formats, and its base64. Bytes may follow it: it is padded, so
    that base64 of what is appended can be appended too."""
    rng = random.Random(f"picture {number}")
    width, height = rng.choice(((56, 56), (128, 128), (224, 168), (336, 336), (448, 280)))
    picture = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(picture)
    for _ in range(rng.randint(1, 3)):
        x, y = rng.randrange(width * 2 // 3), rng.randrange(height * 2 // 3)
        draw.ellipse((x, y, x + width // 3, y + height // 3), fill=rng.choice(COLORS))
    file = BytesIO()
    picture.save(file, FORMATS[number % len(FORMATS)])
    raw = file.getvalue()
    raw += bytes(-len(raw) % 3)
    return raw, base64.b64encode(raw)


@cache
def _photo(number: int) -> tuple[bytes, bytes]:
    """A JPEG of 0.2 to 1.3 MB, as cameras make them, and its base64."""
    width, height = ((800, 600), (1024, 768), (1280, 960), (1600, 1200))[number]
    rng = random.Random(f"photo {number}")
    small = Image.frombytes(
        "RGB", (width // 2, height // 2), rng.randbytes(width * height // 4 * 3)
    )
    file = BytesIO()
    small.resize((width, height)).save(file, "JPEG", quality=80)
    raw = file.getvalue()
    raw += bytes(-len(raw) % 3)
    return raw, base64.b64encode(raw)


def picked(rng: random.Random, serial: str, *, is_photo: bool = False) -> tuple[bytes, bytes]:
    """A file and its base64; half of those with a serial are files that were never sent before."""
    raw, encoded = (
        _photo(rng.randrange(NUM_PHOTOS)) if is_photo else _picture(rng.randrange(NUM_PICTURES))
    )
    if serial and rng.random() < 0.5:
        return _never_sent(raw, encoded, serial)
    return raw, encoded


def fresh(rng: random.Random, serial: str) -> tuple[bytes, bytes]:
    """A drawn picture that was never sent before, and its base64."""
    return _never_sent(*_picture(rng.randrange(NUM_PICTURES)), serial)


def _never_sent(raw: bytes, encoded: bytes, serial: str) -> tuple[bytes, bytes]:
    tail = serial.encode()
    return raw + tail, encoded + base64.b64encode(tail)
