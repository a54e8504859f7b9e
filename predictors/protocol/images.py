"""Decodes untrusted pictures, from bytes or a data URL, to RGB pixels. Fetches no URL, opens no
path.

Only Pillow's PNG, JPEG and WebP decoders are reachable, and the header is checked before any pixel
is decoded. Pillow's messages are never passed on, since they contain object addresses.
"""

from __future__ import annotations

import base64
import binascii
import re
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

WHITE_SPACE = b" \t\r\n\v\f"
STRIP_PIXELS = 2**20

PER_PIXEL_OUT = 3 + 4  # the returned RGB, and Pillow's own four bytes per pixel
PER_PIXEL_TRANSPOSED = 4  # a second copy if EXIF says that the picture is rotated
PER_PIXEL_PROGRESSIVE = 6  # coefficients of all scans: two bytes for each of three components
PER_PIXEL_WEBP = 4 + 4 + 4 + 4  # two canvases, the decoder's pixels, and their copy
MIN_BYTES = 4 * 2**20
MAX_SEGMENTS = 4096  # of a JPEG that are searched for its header; camera files have about 100

_PNG = b"\x89PNG\r\n\x1a\n"
_STANDALONE = {0x01, *range(0xD0, 0xD9)}  # JPEG markers without a length
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}  # start of frame, of any process
_PROGRESSIVE = {0xC2, 0xC6, 0xCA, 0xCE}

# the part of a data URL before the comma, at most `_MAX_HEAD` characters
_DATA_URL = re.compile(
    r"data:([\w.+-]+/[\w.+-]+)?((?:;[\w-]+=[\w.\"-]*)*)(;base64)?,", re.IGNORECASE
)
_MAX_HEAD = 256
_SCHEME = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]*):")
_WHITE = (255, 255, 255, 255)

# `_check_header` is stricter and checks the same header
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


@dataclass(frozen=True, slots=True)
class Pixels:
    """An upright, opaque picture: `height` rows of `width` RGB pixels, uint8, in shared memory."""

    width: int
    height: int
    memory: SharedMemory


def decode_pixels(raw: bytes, limits: ImageLimits, *, param: str = "image") -> Pixels:
    """Decode a picture to upright RGB without metadata. Transparent parts are laid on white.

    Raises `TooLarge` for too many bytes and `InvalidRequest` for anything else, naming `param`.
    Takes milliseconds and megabytes per megapixel (see `decoding_bytes`), so a server runs it in a
    worker process.
    """
    if not raw:
        raise InvalidRequest(f"{param} is empty", param=param)
    if len(raw) > limits.max_bytes:
        message = f"{param} has {len(raw)} bytes; at most {limits.max_bytes} are taken"
        raise TooLarge(message, param=param)
    try:
        picture = Image.open(BytesIO(raw), formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise InvalidRequest(f"{param} has too many pixels", param=param) from error
    except DECODER_ERRORS as error:
        message = f"{param} is not a {ACCEPTED} picture, or its header is damaged"
        raise InvalidRequest(message, param=param) from error
    with picture:
        _check_header(picture, raw, limits, param)
        try:
            picture.load()
            ImageOps.exif_transpose(picture, in_place=True)
            return _pixels(picture)
        except DECODER_ERRORS as error:
            message = f"{param} is damaged or cut short and can't be decoded"
            raise InvalidRequest(message, param=param) from error


def _pixels(picture: Image.Image) -> Pixels:
    # in strips: a second copy of a large picture would double the memory of decoding it
    width, height = picture.size
    memory, rows = SharedMemory.empty(), max(1, STRIP_PIXELS // width)
    for top in range(0, height, rows):
        strip = picture.crop((0, top, width, min(height, top + rows)))
        memory.append(_rgb(strip).tobytes())
    return Pixels(width, height, memory)


def _check_header(picture: Image.Image, raw: bytes, limits: ImageLimits, param: str) -> None:
    """Raise `InvalidRequest` for everything that can be refused before decoding."""
    width, height = picture.size
    size = f"{param} is {width}x{height} pixels"
    if min(width, height) < 1:
        raise InvalidRequest(f"{size}, which is no picture", param=param)
    if max(width, height) > limits.max_side:
        raise InvalidRequest(f"{size}; a side may have {limits.max_side}", param=param)
    if width * height > limits.max_pixels:
        message = f"{size}, {width * height} in all; at most {limits.max_pixels} are taken"
        raise InvalidRequest(message, param=param)
    if max(width, height) > limits.max_aspect * min(width, height):
        message = f"{size}; the longer side may be {limits.max_aspect:g} times the shorter"
        raise InvalidRequest(message, param=param)
    # MPO, as phones write it, is a JPEG with a preview or depth map; only the first is read
    frames = 1 if picture.format == "MPO" else getattr(picture, "n_frames", 1)
    if frames != 1:
        message = f"{param} is an animation of {frames} frames; send a single picture"
        raise InvalidRequest(message, param=param)
    # in a scan's data 0xFF is always followed by 0x00 or a restart marker, so 0xFFDA begins a scan
    if picture.format in {"JPEG", "MPO"} and raw.count(b"\xff\xda") > MAX_JPEG_SCANS:
        message = f"{param} is a progressive JPEG of more than {MAX_JPEG_SCANS} scans"
        raise InvalidRequest(message, param=param)


def _rgb(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I"):  # 16-bit gray, which `convert` would clip to white
        picture = picture.convert("I").point(lambda value: value * (1 / 256)).convert("L")
    if picture.has_transparency_data:
        rgba = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", rgba.size, _WHITE), rgba)
    return picture if picture.mode == "RGB" else picture.convert("RGB")


def read_data_url(url: str, *, param: str = "image_url") -> bytes:
    """Return the bytes of `data:image/png;base64,...`. Raises `InvalidRequest` for any other URL.

    The media type must be an image or absent. The actual format is determined by the bytes.
    """
    match = _DATA_URL.match(url, 0, _MAX_HEAD)
    if match is None:
        raise InvalidRequest(_url_error(url, param), param=param)
    media, is_base64 = (match[1] or "").lower(), match[3]
    if media and not media.startswith("image/"):
        raise InvalidRequest(
            f"{param} is a data URL of {media[:32]}, not of a picture", param=param
        )
    if not is_base64:
        raise InvalidRequest(f"{param} is a data URL without ';base64'", param=param)
    try:
        encoded = url[match.end() :].encode("ascii").translate(None, WHITE_SPACE)
        return base64.b64decode(encoded, validate=True)
    except (UnicodeEncodeError, binascii.Error) as error:
        raise InvalidRequest(
            f"{param} is a data URL whose base64 is damaged", param=param
        ) from error


def _url_error(url: str, param: str) -> str:
    expected = "send the picture itself as data:image/png;base64,..."
    scheme = _SCHEME.match(url, 0, _MAX_HEAD)
    if scheme is not None and scheme[1].lower() in {"http", "https"}:
        return f"{param} is a web address, and this server fetches none; {expected}"
    if scheme is not None and scheme[1].lower() == "data":
        return f"{param} is a malformed data URL; {expected}"
    return f"{param} is not a data URL; {expected}"


# -- memory estimate ------------------------------------------------------------------------------
def decoding_bytes(raw: bytes, max_pixels: int) -> int:
    """Estimate the peak memory of decoding `raw`, in bytes, for a picture of at most `max_pixels`.

    An estimate for a budget, from the first bytes: a header may lie, and the decoder checks it
    again in a process with limited memory. A JPEG without a readable header counts as the largest
    picture, other data as a small one.
    """
    pixels, per_pixel = _read(raw, max_pixels)
    # a larger picture is refused by its header, which takes no memory
    return MIN_BYTES + len(raw) + (pixels * per_pixel if pixels <= max_pixels else 0)


def _read(raw: bytes, max_pixels: int) -> tuple[int, int]:
    """Return the number of pixels and the bytes per pixel."""
    out = PER_PIXEL_OUT + PER_PIXEL_TRANSPOSED
    if raw.startswith(_PNG):
        return _big_endian(raw, 16, 4) * _big_endian(raw, 20, 4), out
    if raw[:4] == b"RIFF" and raw[8:12] == b"WEBP":
        return _webp_pixels(raw), out + PER_PIXEL_WEBP
    if raw.startswith(b"\xff\xd8"):
        return _jpeg(raw, out) or (max_pixels, out + PER_PIXEL_PROGRESSIVE)
    return 0, 0


def _webp_pixels(raw: bytes) -> int:
    # https://developers.google.com/speed/webp/docs/riff_container
    kind = raw[12:16]
    if kind == b"VP8X":
        return (_little_endian(raw, 24, 3) + 1) * (_little_endian(raw, 27, 3) + 1)
    if kind == b"VP8L":
        bits = _little_endian(raw, 21, 4)
        return ((bits & 0x3FFF) + 1) * ((bits >> 14 & 0x3FFF) + 1)
    return (_little_endian(raw, 26, 2) & 0x3FFF) * (_little_endian(raw, 28, 2) & 0x3FFF)


def _jpeg(raw: bytes, out: int) -> tuple[int, int] | None:
    # ITU-T T.81, annex B: markers with their lengths, up to the frame header
    position = 2
    for _ in range(MAX_SEGMENTS):
        if position + 9 > len(raw) or raw[position] != 0xFF:
            break
        marker = raw[position + 1]
        if marker in _FRAMES:
            pixels = _big_endian(raw, position + 5, 2) * _big_endian(raw, position + 7, 2)
            return pixels, out + (PER_PIXEL_PROGRESSIVE if marker in _PROGRESSIVE else 0)
        if marker == 0xFF:  # a fill byte
            position += 1
        else:
            position += 2 if marker in _STANDALONE else 2 + _big_endian(raw, position + 2, 2)
    return None


def _big_endian(raw: bytes, start: int, size: int) -> int:
    return int.from_bytes(raw[start : start + size], "big")


def _little_endian(raw: bytes, start: int, size: int) -> int:
    return int.from_bytes(raw[start : start + size], "little")
