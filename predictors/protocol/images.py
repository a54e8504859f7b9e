"""A caller's picture, from bytes or a data URL to plain RGB pixels, checked before it is decoded.
No URL is fetched and no path is opened.

Only three decoders of Pillow are ever reached (PNG, JPEG, WebP). Everything that the header tells
is checked before the pixels are touched, and no text of Pillow's reaches a caller: its messages
carry object addresses.
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
from predictors.workers.shared_memory import SharedMemory

FORMATS = ("PNG", "JPEG", "WEBP")
ACCEPTED = "PNG, JPEG or WebP"
MAX_JPEG_SCANS = 100  # every scan of a progressive JPEG costs a pass over all its pixels

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
"""What Pillow raises for files made by an enemy or a bad disk."""

WHITE_SPACE = b" \t\r\n\v\f"
STRIP_PIXELS = 2**20

PER_PIXEL_OUT = 3 + 4  # what is handed back, and Pillow's own four bytes a pixel
PER_PIXEL_TURNED = 4  # a second copy for a picture that EXIF says lies on its side
PER_PIXEL_PROGRESSIVE = 6  # coefficients of all scans, two bytes for each of three components
PER_PIXEL_WEBP = 4 + 4 + 4 + 4  # two canvases, the decoder's pixels, and their copy
LEAST_BYTES = 4 * 2**20
MAX_SEGMENTS = 4096  # of a JPEG that are walked; camera files have a hundred

_PNG = b"\x89PNG\r\n\x1a\n"
_STANDALONE = {0x01, *range(0xD0, 0xD9)}  # JPEG markers without a length
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}  # start of frame, of any process
_PROGRESSIVE = {0xC2, 0xC6, 0xCA, 0xCE}

# what stands before the comma of a data URL; a longer head is none
_DATA_URL = re.compile(
    r"data:([\w.+-]+/[\w.+-]+)?((?:;[\w-]+=[\w.\"-]*)*)(;base64)?,", re.IGNORECASE
)
_MAX_HEAD = 256
_SCHEME = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]*):")
_WHITE = (255, 255, 255, 255)

# our own check of the pixels is stricter and comes at the same moment
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


@dataclass(frozen=True, slots=True)
class Pixels:
    """A decoded picture, upright and without transparency: `height` rows of `width` RGB pixels, a
    byte each colour, in shared memory."""

    width: int
    height: int
    memory: SharedMemory


def decode_pixels(raw: bytes, limits: ImageLimits, *, param: str = "image") -> Pixels:
    """The picture as RGB, upright, without metadata; transparency is laid on white.

    Raises `TooLarge` for too many bytes and `InvalidRequest` for whatever else is wrong, naming
    `param`. Takes milliseconds and megabytes per megapixel, see `decoding_bytes`: a server does it
    in a worker process.
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
    # strip by strip: a second copy of a large picture would double what decoding it takes
    width, height = picture.size
    memory, rows = SharedMemory.empty(), max(1, STRIP_PIXELS // width)
    for top in range(0, height, rows):
        strip = picture.crop((0, top, width, min(height, top + rows)))
        memory.append(_rgb(strip).tobytes())
    return Pixels(width, height, memory)


def _check_header(picture: Image.Image, raw: bytes, limits: ImageLimits, param: str) -> None:
    """Raise `InvalidRequest` for whatever can be told before decoding."""
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
    # MPO is a JPEG with a preview or depth map behind it, as phones write; only the first is read
    frames = 1 if picture.format == "MPO" else getattr(picture, "n_frames", 1)
    if frames != 1:
        message = f"{param} is an animation of {frames} frames; send a single picture"
        raise InvalidRequest(message, param=param)
    # inside a scan's data 0xFF is always followed by 0x00 or a restart marker
    if picture.format in {"JPEG", "MPO"} and raw.count(b"\xff\xda") > MAX_JPEG_SCANS:
        message = f"{param} is a progressive JPEG of more than {MAX_JPEG_SCANS} scans"
        raise InvalidRequest(message, param=param)


def _rgb(picture: Image.Image) -> Image.Image:
    """`picture` as plain RGB."""
    if picture.mode.startswith("I"):  # 16-bit gray, which `convert` would clip to white
        picture = picture.convert("I").point(lambda value: value * (1 / 256)).convert("L")
    if picture.has_transparency_data:
        rgba = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", rgba.size, _WHITE), rgba)
    return picture if picture.mode == "RGB" else picture.convert("RGB")


def read_data_url(url: str, *, param: str = "image_url") -> bytes:
    """The bytes of `data:image/png;base64,...`; raises `InvalidRequest` for any other URL.

    The media type must be one of a picture or absent. Which kind of picture it really is, its
    bytes tell, not its name.
    """
    match = _DATA_URL.match(url, 0, _MAX_HEAD)
    if match is None:
        raise InvalidRequest(_not_data(url, param), param=param)
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


def _not_data(url: str, param: str) -> str:
    expected = "send the picture itself as data:image/png;base64,..."
    scheme = _SCHEME.match(url, 0, _MAX_HEAD)
    if scheme is not None and scheme[1].lower() in {"http", "https"}:
        return f"{param} is a web address, and this server fetches none; {expected}"
    if scheme is not None and scheme[1].lower() == "data":
        return f"{param} is a malformed data URL; {expected}"
    return f"{param} is not a data URL; {expected}"


# -- memory estimate ------------------------------------------------------------------------------
def decoding_bytes(raw: bytes, max_pixels: int) -> int:
    """Bytes of memory that decoding `raw` takes at its peak, for a picture of at most `max_pixels`.

    A JPEG whose header is not found counts as the largest, what is no picture as a small one.
    """
    pixels, per_pixel = _read(raw, max_pixels)
    # one that is too large is refused on its header and takes nothing
    return LEAST_BYTES + len(raw) + (pixels * per_pixel if pixels <= max_pixels else 0)


def _read(raw: bytes, max_pixels: int) -> tuple[int, int]:
    """Pixels, and bytes that each takes."""
    out = PER_PIXEL_OUT + PER_PIXEL_TURNED
    if raw.startswith(_PNG):
        return _big(raw, 16, 4) * _big(raw, 20, 4), out
    if raw[:4] == b"RIFF" and raw[8:12] == b"WEBP":
        return _webp_pixels(raw), out + PER_PIXEL_WEBP
    if raw.startswith(b"\xff\xd8"):
        return _jpeg(raw, out) or (max_pixels, out + PER_PIXEL_PROGRESSIVE)
    return 0, 0


def _webp_pixels(raw: bytes) -> int:
    # https://developers.google.com/speed/webp/docs/riff_container
    kind = raw[12:16]
    if kind == b"VP8X":
        return (_little(raw, 24, 3) + 1) * (_little(raw, 27, 3) + 1)
    if kind == b"VP8L":
        bits = _little(raw, 21, 4)
        return ((bits & 0x3FFF) + 1) * ((bits >> 14 & 0x3FFF) + 1)
    return (_little(raw, 26, 2) & 0x3FFF) * (_little(raw, 28, 2) & 0x3FFF)


def _jpeg(raw: bytes, out: int) -> tuple[int, int] | None:
    # ITU-T T.81, annex B: markers, each followed by its length, until the frame's header
    position = 2
    for _ in range(MAX_SEGMENTS):
        if position + 9 > len(raw) or raw[position] != 0xFF:
            break
        marker = raw[position + 1]
        if marker in _FRAMES:
            pixels = _big(raw, position + 5, 2) * _big(raw, position + 7, 2)
            return pixels, out + (PER_PIXEL_PROGRESSIVE if marker in _PROGRESSIVE else 0)
        if marker == 0xFF:  # a fill byte
            position += 1
        else:
            position += 2 if marker in _STANDALONE else 2 + _big(raw, position + 2, 2)
    return None


def _big(raw: bytes, start: int, size: int) -> int:
    return int.from_bytes(raw[start : start + size], "big")


def _little(raw: bytes, start: int, size: int) -> int:
    return int.from_bytes(raw[start : start + size], "little")
