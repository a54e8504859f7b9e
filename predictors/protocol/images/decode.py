"""Decodes untrusted picture files to upright RGB pixels in shared memory.

Only Pillow's PNG, JPEG and WebP decoders are reachable, and the header is checked before any pixel
is decoded. Pillow's messages are never passed on, since they contain object addresses.
"""

from __future__ import annotations

import struct
import warnings
import zlib
from dataclasses import dataclass
from io import BytesIO

from PIL import Image, ImageOps

from predictors.errors import InvalidRequest, TooLarge
from predictors.settings import ImageLimits
from predictors.workers.messages import SharedMemory

FORMATS = ("PNG", "JPEG", "WEBP")
ACCEPTED = "PNG, JPEG or WebP"
MAX_JPEG_SCANS = 100  # each scan of a progressive JPEG costs a pass over all pixels

DECODER_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    OSError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
    Warning,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)
"""Exceptions that Pillow raises for malicious or damaged files."""

STRIP_PIXELS = 2**20

_WHITE = (255, 255, 255, 255)

# `_check_header` is stricter and checks the same header
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


@dataclass(frozen=True, slots=True)
class Pixels:
    """An upright, opaque picture: `height` rows of `width` RGB pixels, uint8, in shared memory."""

    width: int
    height: int
    memory: SharedMemory


def decode_pixels(
    raw: bytes, limits: ImageLimits, *, param: str = "image", row: int | None = None
) -> Pixels:
    """Decode a picture to upright RGB without metadata. Transparent parts are laid on white.

    Raises `TooLarge` for too many bytes and `InvalidRequest` for anything else, naming `param` and
    `row`.
    Takes milliseconds and megabytes per megapixel (see `decoding_bytes`), so a server runs it in a
    worker process.
    """
    try:
        return _decode(raw, limits)
    except InvalidRequest as error:
        message = f"{param} {error.message}"
        raise type(error)(message, param=param, row=row) from error


def _decode(raw: bytes, limits: ImageLimits) -> Pixels:
    # messages of the functions below complete a sentence that begins with the picture's field
    if not raw:
        raise InvalidRequest("is empty")
    if len(raw) > limits.max_bytes:
        raise TooLarge(f"has {len(raw)} bytes; at most {limits.max_bytes} are taken")
    try:
        picture = Image.open(BytesIO(raw), formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise InvalidRequest("has too many pixels") from error
    except DECODER_ERRORS as error:
        message = f"is not a {ACCEPTED} picture, or its header is damaged"
        raise InvalidRequest(message) from error
    with picture:
        _check_header(picture, raw, limits)
        try:
            picture.load()
            ImageOps.exif_transpose(picture, in_place=True)
            return _pixels(picture)
        except DECODER_ERRORS as error:
            raise InvalidRequest("is damaged or cut short and can't be decoded") from error


def _pixels(picture: Image.Image) -> Pixels:
    # in strips: a second copy of a large picture would double the memory of decoding it
    width, height = picture.size
    memory, rows = SharedMemory.empty(), max(1, STRIP_PIXELS // width)
    for top in range(0, height, rows):
        strip = picture.crop((0, top, width, min(height, top + rows)))
        memory.append(_rgb(strip).tobytes())
    return Pixels(width, height, memory)


def _check_header(picture: Image.Image, raw: bytes, limits: ImageLimits) -> None:
    """Raise `InvalidRequest` for everything that can be refused before decoding."""
    width, height = picture.size
    size = f"is {width}x{height} pixels"
    if min(width, height) < 1:
        raise InvalidRequest(f"{size}, which is no picture")
    if max(width, height) > limits.max_side:
        raise InvalidRequest(f"{size}; a side may have {limits.max_side}")
    if width * height > limits.max_pixels:
        message = f"{size}, {width * height} in all; at most {limits.max_pixels} are taken"
        raise InvalidRequest(message)
    if max(width, height) > limits.max_aspect * min(width, height):
        message = f"{size}; the longer side may be {limits.max_aspect:g} times the shorter"
        raise InvalidRequest(message)
    # MPO, as phones write it, is a JPEG with a preview or depth map; only the first is read
    frames = 1 if picture.format == "MPO" else getattr(picture, "n_frames", 1)
    if frames != 1:
        message = f"is an animation of {frames} frames; send a single picture"
        raise InvalidRequest(message)
    # in a scan's data 0xFF is always followed by 0x00 or a restart marker, so 0xFFDA begins a scan
    if picture.format in {"JPEG", "MPO"} and raw.count(b"\xff\xda") > MAX_JPEG_SCANS:
        message = f"is a progressive JPEG of more than {MAX_JPEG_SCANS} scans"
        raise InvalidRequest(message)


def _rgb(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I"):  # 16-bit gray, which `convert` would clip to white
        picture = picture.convert("I").point(lambda value: value * (1 / 256)).convert("L")
    if picture.has_transparency_data:
        rgba = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", rgba.size, _WHITE), rgba)
    return picture if picture.mode == "RGB" else picture.convert("RGB")
