"""Decodes untrusted picture files to upright pixels in shared memory: RGB, or the levels of a mask.

The file's first bytes choose one decoder. What it gets is the file without what it does not need
(see the module of each format), and the header is checked before any pixel is decoded. Messages of
other libraries are never passed on, since they contain object addresses.
"""

from __future__ import annotations

import importlib
import os
import struct
import warnings
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import BytesIO

from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageChops,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from predictors.errors import InvalidRequest, TooLarge
from predictors.protocol.images import kinds
from predictors.protocol.images.gif import clean_gif
from predictors.protocol.images.jpeg import clean_jpeg
from predictors.protocol.images.kinds import ACCEPTED, CleanFile, Kind, kind_of
from predictors.protocol.images.memory import bmp_size
from predictors.protocol.images.png import clean_png
from predictors.protocol.images.tiff import clean_tiff
from predictors.protocol.images.transparent_colour import (
    apply_transparent_colour,
    gray_with_alpha,
)
from predictors.protocol.named_fields import naming_field
from predictors.settings import ImageLimits
from predictors.workers.messages import SharedMemory, result_memory

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

PLUGINS = (
    AvifImagePlugin,
    BmpImagePlugin,
    GifImagePlugin,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)
"""The parts of Pillow that decode. Without one of them, Pillow would import all that it has."""

STRIP_PIXELS = 2**17
"""Pixels that are converted at a time: two copies of them stay in a core's cache."""
MAX_RUN_LENGTH = 2**22  # pixels and bytes of a BMP whose runs Pillow reads one by one in Python

_WHITE = (255, 255, 255, 255)
_ORIENTATION = 0x0112  # EXIF's tag
_TRANSPOSES = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_CLEAN = {
    kinds.PNG: clean_png,
    kinds.JPEG: clean_jpeg,
    kinds.GIF: clean_gif,
    kinds.TIFF: clean_tiff,
}

Image.MAX_IMAGE_PIXELS = None  # `_check_size` is stricter, and says the numbers
warnings.filterwarnings("ignore", module=r"PIL\.")  # about metadata that is damaged
TiffImagePlugin.READ_LIBTIFF = True  # Pillow's own reader takes planes of 16 bits for 8
# one thread per picture: a worker process has one, and each takes memory for its own frames
AvifImagePlugin.DEFAULT_MAX_THREADS = 1


@dataclass(frozen=True, slots=True)
class Pixels:
    """An upright, opaque picture in shared memory: `height` rows of `width` pixels, uint8, of red,
    green and blue, or of one level."""

    width: int
    height: int
    memory: SharedMemory


def decode_pixels(
    raw: bytes,
    limits: ImageLimits,
    *,
    param: str = "image",
    row: int | None = None,
    in_worker: bool = False,
) -> Pixels:
    """Decode a picture to upright RGB without metadata. Transparent parts are laid on white.

    Raises `TooLarge` for too many bytes and `InvalidRequest` for anything else, naming `param` and
    `row`. Takes milliseconds and megabytes per megapixel (see `decoding_bytes`), so a server runs
    it in a worker process. HEIC is decoded only there (`in_worker`).
    """
    with naming_field(param, row):
        return _decode(raw, limits, in_worker, _pixels)


def decode_mask(
    raw: bytes,
    limits: ImageLimits,
    *,
    param: str = "mask",
    row: int | None = None,
    in_worker: bool = False,
) -> Pixels:
    """Decode a mask to an upright picture of one level per pixel: 255 is to be redrawn, 0 is kept.

    That is its transparency where any pixel has some, as for OpenAI, else its gray: white is to be
    redrawn. Raises as `decode_pixels`.
    """
    with naming_field(param, row):
        return _decode(raw, limits, in_worker, _levels)


def _decode(
    raw: bytes,
    limits: ImageLimits,
    in_worker: bool,
    read: Callable[[Image.Image], Pixels],
) -> Pixels:
    if not raw:
        raise InvalidRequest("is empty")
    if len(raw) > limits.max_bytes:
        raise TooLarge(f"has {len(raw)} bytes; at most {limits.max_bytes} are taken")
    kind = kind_of(raw)
    if not kind.codec:
        raise InvalidRequest(f"is {kind.name}; taken are pictures in {ACCEPTED}")
    file, orientation = _cleaned(kind, raw)
    with _open(kind, file, in_worker) as picture:
        _check_size(picture.size, limits)
        _check_frames(picture)
        try:
            picture.load()
            _check_size(picture.size, limits)  # which the data may contradict
            return read(_upright(_with_transparency(kind, picture, file), orientation))
        except DECODER_ERRORS as error:
            raise InvalidRequest("is damaged or cut short and can't be decoded") from error


def _cleaned(kind: Kind, raw: bytes) -> CleanFile:
    """The file that is decoded, and its orientation if that is known."""
    if kind is kinds.BMP:
        _check_runs(raw)
    if kind is kinds.HEIC:
        return CleanFile(raw, 1)  # its decoder turns it
    return _CLEAN[kind](raw) if kind in _CLEAN else CleanFile(raw)


def _open(kind: Kind, file: bytes, in_worker: bool) -> Image.Image:
    """The picture, with its pixels not decoded yet."""
    try:
        if kind is kinds.HEIC:
            return _open_heic(file, in_worker)
        return Image.open(BytesIO(file), formats=[kind.codec])
    except DECODER_ERRORS as error:
        problem = "whose header is damaged, or of a form that is not read"
        raise InvalidRequest(f"is {kind.name} {problem}") from error


def _open_heic(raw: bytes, in_worker: bool) -> Image.Image:
    problem = f"is {kinds.HEIC.name}, which this server can't decode; send it as JPEG or PNG"
    if not in_worker:
        raise InvalidRequest(problem)
    try:
        plugin = importlib.import_module("pi_heif.as_plugin")  # no other process loads it
    except ImportError as error:
        raise InvalidRequest(problem) from error
    options = plugin.options
    options.DECODE_THREADS = 1
    options.THUMBNAILS = options.DEPTH_IMAGES = options.AUX_IMAGES = False
    picture: Image.Image = plugin.HeifImageFile(BytesIO(raw))
    return picture


def _check_runs(raw: bytes) -> None:
    width, height = bmp_size(raw)
    has_runs = raw[14] > 12 and raw[30:34] in (b"\1\0\0\0", b"\2\0\0\0")
    if has_runs and max(width * height, len(raw)) > MAX_RUN_LENGTH:
        raise InvalidRequest(
            f"is a BMP of {width}x{height} pixels in {len(raw)} bytes with run-length compression; "
            f"of those at most {MAX_RUN_LENGTH} pixels and bytes are taken"
        )


def _check_size(size: tuple[int, int], limits: ImageLimits) -> None:
    """Raise `InvalidRequest` for a size beyond the limits."""
    width, height = size
    shown = f"is {width}x{height} pixels"
    if min(width, height) < 1:
        raise InvalidRequest(f"{shown}, which is no picture")
    if max(width, height) > limits.max_side:
        raise InvalidRequest(f"{shown}; a side may have {limits.max_side}")
    if width * height > limits.max_pixels:
        in_all = f"{width * height} in all; at most {limits.max_pixels} are taken"
        raise InvalidRequest(f"{shown}, {in_all}")
    if max(width, height) > limits.max_aspect * min(width, height):
        ratio = f"{limits.max_aspect:g} times the shorter"
        raise InvalidRequest(f"{shown}; the longer side may be {ratio}")


def _check_frames(picture: Image.Image) -> None:
    # of a HEIC file, as phones write it, only the main picture is read
    frames = 1 if picture.format == kinds.HEIC.codec else getattr(picture, "n_frames", 1)
    if frames != 1:
        raise InvalidRequest(f"is an animation of {frames} frames; send a single picture")


def _with_transparency(kind: Kind, picture: Image.Image, file: bytes) -> Image.Image:
    """The loaded picture with the transparency that its format means, where Pillow's differs."""
    if kind is kinds.PNG:
        apply_transparent_colour(picture, file)
    if isinstance(picture, GifImagePlugin.GifImageFile):
        return _with_clear_surround(picture)
    if kind is kinds.BMP:
        _fill_blank_alpha(picture)
    return picture


def _with_clear_surround(picture: GifImagePlugin.GifImageFile) -> Image.Image:
    """Pillow fills what a GIF's frame leaves of its screen with the palette's first colour."""
    whole, frame = (0, 0, *picture.size), picture.dispose_extent
    if frame in (None, whole) or picture.has_transparency_data:
        return picture
    alpha = Image.new("L", picture.size, 0)
    alpha.paste(255, frame)
    found = picture.convert("RGB")
    found.putalpha(alpha)
    return found


def _fill_blank_alpha(picture: Image.Image) -> None:
    # programs that know no alpha leave it 0 in a BMP of 32 bits
    if picture.mode == "RGBA" and picture.getchannel("A").getextrema() == (0, 0):
        picture.putalpha(255)


def _upright(picture: Image.Image, orientation: int | None) -> Image.Image:
    """The loaded picture as it is to be seen. Metadata that can't be read turns nothing."""
    if orientation is None:
        try:
            orientation = picture.getexif().get(_ORIENTATION)
        except DECODER_ERRORS:
            orientation = None
    method = _TRANSPOSES.get(orientation) if isinstance(orientation, int) else None
    return picture if method is None else picture.transpose(method)


def _pixels(picture: Image.Image) -> Pixels:
    memory = result_memory()
    if picture.mode == "RGB" and not picture.has_transparency_data:
        _write_rgb(picture, memory)
    else:
        for strip in _strips(picture):
            memory.append(_rgb(strip).tobytes())
    return Pixels(*picture.size, memory)


def _write_rgb(picture: Image.Image, memory: SharedMemory) -> None:
    """Write the levels of an RGB picture into `memory` as Pillow writes files: it packs them
    straight into a descriptor, without the copies of `crop` and `tobytes`."""
    size = 3 * picture.width * picture.height
    with os.fdopen(memory.fd, "wb", buffering=0, closefd=False) as file:
        file.seek(0)
        whole = ImageFile._Tile("raw", (0, 0, *picture.size), 0, "RGB")
        ImageFile._save(picture, file, [whole])
        if file.tell() != size:
            raise OSError(f"{file.tell()} of {size} bytes were written")
    memory.size = size


def _levels(picture: Image.Image) -> Pixels:
    grays, clear, is_opaque = SharedMemory.empty(), SharedMemory.empty(), True
    for strip in _strips(picture):
        grays.append(_rgb(strip).convert("L").tobytes())
        if strip.has_transparency_data:
            alpha = _converted(strip).convert("RGBA").getchannel("A")
            is_opaque = is_opaque and alpha.getextrema() == (255, 255)
            clear.append(ImageChops.invert(alpha).tobytes())
    return Pixels(*picture.size, grays if is_opaque else clear)


def _strips(picture: Image.Image) -> Iterator[Image.Image]:
    # a second copy of a large picture would double the memory of decoding it
    width, height = picture.size
    rows = max(1, STRIP_PIXELS // width)
    for top in range(0, height, rows):
        yield picture.crop((0, top, width, min(height, top + rows)))


def _rgb(picture: Image.Image) -> Image.Image:
    picture = _converted(picture)
    if picture.has_transparency_data:
        rgba = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", rgba.size, _WHITE), rgba)
    return picture if picture.mode == "RGB" else picture.convert("RGB")


def _converted(picture: Image.Image) -> Image.Image:
    """The picture in a mode that every other one can be made of."""
    if picture.mode.startswith("I"):  # 16-bit gray, which `convert` would clip to white
        if picture.has_transparency_data:
            return gray_with_alpha(picture)
        return picture.convert("I").point(lambda value: value * (1 / 256)).convert("L")
    if picture.mode == "La":  # no other conversion takes premultiplied gray
        return picture.convert("LA")
    return picture
