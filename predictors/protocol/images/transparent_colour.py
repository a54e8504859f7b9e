"""The one transparent colour of a PNG (its chunk tRNS), compared with the samples of the file.

Pillow compares it with samples that it has made 8 bits of. So of pictures with 2, 4 and 16 bits a
sample it would leave transparent pixels opaque, and make opaque ones transparent.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import reduce
from io import BytesIO

from PIL import Image, ImageChops, PngImagePlugin

_DEPTH = 24  # byte of the file that has the bits of a sample
_DEEP = 16
_LOW_BYTES = "RGB;16L"  # of big-endian samples, which this name takes for little-endian ones


def apply_transparent_colour(picture: Image.Image, file: bytes) -> None:
    """Make the loaded picture of a cleaned PNG `file` transparent where the file is.

    16-bit gray is left to `gray_with_alpha`. Of 16-bit RGB the file is decoded once more. Raises
    what Pillow raises for damaged files.
    """
    key, depth = picture.info.get("transparency"), file[_DEPTH]
    if isinstance(key, tuple) and depth == _DEEP:
        alpha = _opaque(_pairs(picture, file), key)
        del picture.info["transparency"]
        picture.putalpha(alpha)
        return
    most = 2**depth - 1
    if isinstance(key, tuple):  # the standard has the unused bits of a colour ignored
        picture.info["transparency"] = tuple(each & most for each in key)
    elif isinstance(key, int) and picture.mode == "L":
        picture.info["transparency"] = (key & most) * 255 // most


def gray_with_alpha(picture: Image.Image) -> Image.Image:
    """16-bit gray with a transparent colour, as 8-bit gray with alpha."""
    low, high = Image.frombytes("LA", picture.size, picture.tobytes("raw", "I;16")).split()
    alpha = _opaque([(high, low)], (picture.info["transparency"],))
    return Image.merge("LA", (high, alpha))


def _pairs(picture: Image.Image, file: bytes) -> Iterable[tuple[Image.Image, Image.Image]]:
    """The high and the low byte of each channel's samples."""
    with Image.open(BytesIO(file), formats=[PngImagePlugin.PngImageFile.format]) as low:
        low.tile = [each._replace(args=_LOW_BYTES) for each in low.tile]
        low.load()
        for band in range(3):
            yield picture.getchannel(band), low.getchannel(band)


def _opaque(pairs: Iterable[tuple[Image.Image, Image.Image]], key: tuple[int, ...]) -> Image.Image:
    """0 where all samples are the key's, else 255."""
    return reduce(
        ImageChops.lighter,
        (
            each.point([255 * (level != byte) for level in range(256)])
            for pair, sample in zip(pairs, key, strict=True)
            for each, byte in zip(pair, divmod(sample, 256), strict=True)
        ),
    )
