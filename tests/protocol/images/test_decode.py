"""Untrusted pictures become upright RGB without metadata; limits and bad files."""

from __future__ import annotations

import base64
import os
import threading
import warnings
from io import BytesIO
from typing import Any

import pytest
from PIL import Image, ImageCms, ImageFile

from predictors.errors import InvalidRequest, TooLarge
from predictors.protocol.images import decode
from predictors.protocol.images.decode import decode_mask, decode_pixels
from predictors.protocol.images.urls import read_data_url
from predictors.settings import ImageLimits
from predictors.workers.messages import SharedMemory
from tests.http.pictures import BAD_PICTURES, Bad, png_of

LIMITS = ImageLimits()
RED, WHITE = (255, 0, 0), (255, 255, 255)
ORANGE = (200, 100, 50)


def saved(picture: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def decode_image(raw: bytes, limits: ImageLimits, *, param: str = "image") -> Image.Image:
    pixels = decode_pixels(raw, limits, param=param)
    with pixels.memory.map() as mapped:
        return Image.frombytes("RGB", (pixels.width, pixels.height), mapped[:])


def plain(mode: str, color: Any, size: tuple[int, int] = (8, 8)) -> Image.Image:
    return Image.new(mode, size, color)


def palette(**options: Any) -> bytes:
    picture = plain("P", 1)
    picture.putpalette([*RED, *ORANGE])
    return saved(picture, **options)


@pytest.mark.parametrize(
    ("raw", "color"),
    [
        (saved(plain("RGB", ORANGE)), ORANGE),
        (saved(plain("L", 77)), (77, 77, 77)),
        (saved(plain("1", 1)), WHITE),
        (saved(plain("I;16", 200 * 256)), (200, 200, 200)),
        (palette(), ORANGE),
        (palette(transparency=1), WHITE),
        (palette(transparency=0), ORANGE),
        (saved(plain("L", 77), transparency=77), WHITE),
        (saved(plain("RGB", ORANGE), transparency=ORANGE), WHITE),
        (saved(plain("RGBA", (*ORANGE, 255))), ORANGE),
        (saved(plain("RGBA", (*ORANGE, 0))), WHITE),
        (saved(plain("RGBA", (0, 0, 0, 51))), (204, 204, 204)),
        (saved(plain("LA", (77, 0))), WHITE),
        (saved(plain("RGBA", (*ORANGE, 0)), "WEBP", lossless=True, exact=True), WHITE),
        (saved(plain("RGB", ORANGE), "WEBP", lossless=True), ORANGE),
    ],
    ids=[
        "RGB", "gray", "bilevel", "16-bit gray", "palette", "transparent palette entry",
        "other palette entry transparent", "transparent gray", "transparent colour", "opaque",
        "transparent", "one fifth black", "gray with alpha", "WebP with alpha", "WebP",
    ],
)  # fmt: skip
def test_every_mode_becomes_rgb_on_white(raw: bytes, color: tuple[int, int, int]) -> None:
    picture = decode_image(raw, LIMITS)
    assert (picture.mode, picture.size) == ("RGB", (8, 8))
    assert picture.getpixel((3, 3)) == color


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK", "YCbCr"])
def test_every_jpeg_mode_becomes_rgb(mode: str) -> None:
    original = plain("RGB", ORANGE).convert(mode)
    picture = decode_image(saved(original, "JPEG", quality=95), LIMITS)
    found = picture.getpixel((3, 3))
    expected = original.convert("RGB").getpixel((3, 3))
    assert picture.mode == "RGB"
    assert max(abs(a - b) for a, b in zip(found, expected, strict=True)) <= 3  # type: ignore[arg-type]


PICTURE = Image.linear_gradient("L").resize((61, 37))
COLOURS = Image.merge("RGB", [PICTURE, PICTURE.rotate(90), PICTURE.transpose(1)])
SAMPLED = [{"subsampling": i, "progressive": p} for i in range(3) for p in (False, True)]
FILES = [
    *(saved(COLOURS, "JPEG", **how) for how in SAMPLED),
    saved(COLOURS, "JPEG", restart_marker_blocks=3),
    saved(COLOURS.resize((1300, 700)), "JPEG"),  # more rows than one piece of the encoder
    saved(PICTURE, "JPEG"),
    saved(COLOURS),
    saved(COLOURS, transparency=COLOURS.getpixel((0, 0))),
]


@pytest.mark.parametrize("raw", FILES)
def test_pixels_are_pillows_own_to_the_bit(raw: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    used = SharedMemory.empty()
    used.append(b"\xaa" * 5_000_000)  # of another task: longer, and its end is where writing ends
    os.lseek(used.fd, 1234, os.SEEK_SET)
    used.size = 0
    monkeypatch.setattr(decode, "result_memory", lambda: used)
    with Image.open(BytesIO(raw)) as picture:
        expected = picture.convert("RGBA" if "transparency" in picture.info else "RGB")
    if expected.mode == "RGBA":
        white = Image.new("RGBA", expected.size, (255, 255, 255, 255))
        expected = Image.alpha_composite(white, expected).convert("RGB")
    pixels = decode_pixels(raw, LIMITS)
    assert (pixels.width, pixels.height) == expected.size
    assert pixels.memory.size == 3 * pixels.width * pixels.height
    assert pixels.memory.read(0, pixels.memory.size) == expected.tobytes()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation: int) -> None:
    upright = Image.new("RGB", (4, 2), WHITE)
    upright.putpixel((0, 0), RED)
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = upright.transpose(undo[orientation]) if orientation in undo else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture = decode_image(saved(stored, exif=exif.tobytes()), LIMITS)
    assert picture.size == (4, 2)
    assert picture.getpixel((0, 0)) == RED


def test_metadata_and_colour_profile_are_dropped() -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    exif = Image.Exif()
    exif[0x010E] = "where I live"
    raw = saved(plain("RGB", ORANGE), "JPEG", icc_profile=profile, exif=exif.tobytes())
    picture = decode_image(raw, LIMITS)
    assert picture.info == {}
    assert type(picture) is Image.Image
    assert b"where I live" not in saved(picture, "JPEG")


def test_the_first_picture_of_an_mpo_file_is_used() -> None:
    file = BytesIO()
    plain("RGB", ORANGE).save(file, "MPO", save_all=True, append_images=[plain("RGB", RED)])
    found = decode_image(file.getvalue(), LIMITS).getpixel((3, 3))
    assert max(abs(a - b) for a, b in zip(found, ORANGE, strict=True)) <= 3  # type: ignore[arg-type]


def test_a_picture_of_one_pixel_is_decoded() -> None:
    assert decode_image(saved(plain("RGB", RED, (1, 1))), LIMITS).size == (1, 1)


def test_the_media_type_of_a_data_url_does_not_matter() -> None:
    raw = saved(plain("RGB", RED), "JPEG")
    encoded = base64.b64encode(raw).decode()
    assert decode_image(read_data_url(f"data:image/png;base64,{encoded}"), LIMITS).size == (8, 8)


@pytest.mark.parametrize("bad", BAD_PICTURES, ids=lambda bad: bad.name)
def test_a_bad_pictures_error_names_the_parameter_and_hides_pillow(bad: Bad) -> None:
    limits = ImageLimits(max_bytes=200_000, max_pixels=10**6, max_side=4000, max_aspect=50.0)
    with pytest.raises(InvalidRequest) as caught:
        decode_image(bad.raw, limits, param="photo")
    assert caught.value.param == "photo"
    assert caught.value.message.startswith("photo ")
    assert " 0x" not in caught.value.message
    assert isinstance(caught.value, TooLarge) == (bad.status == 413)


def test_limits_are_checked_before_anything_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(self: ImageFile.ImageFile) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr(ImageFile.ImageFile, "load", load)
    limits = ImageLimits(max_pixels=100, max_side=50, max_aspect=5.0)
    for size, words in (((11, 10), "at most 100"), ((51, 1), "a side may"), ((20, 2), "5 times")):
        with pytest.raises(InvalidRequest, match=words):
            decode_image(png_of(*size), limits)


def test_a_decompression_bomb_is_refused_without_a_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(InvalidRequest, match="pixels"):
            decode_image(png_of(13_000, 13_000), LIMITS)
        with pytest.raises(InvalidRequest, match="pixels"):
            decode_image(png_of(40_000, 40_000), LIMITS)


def test_pictures_are_decoded_in_several_threads_at_once() -> None:
    raws = [saved(plain("RGB", (i, i, i), (64, 64))) for i in range(16)]
    found: dict[int, Any] = {}

    def work(i: int) -> None:
        found[i] = decode_image(raws[i], LIMITS).getpixel((5, 5))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {i: (i, i, i) for i in range(16)}


# -- masks -----------------------------------------------------------------------------------------
def levels(raw: bytes, limits: ImageLimits = LIMITS) -> Image.Image:
    mask = decode_mask(raw, limits)
    with mask.memory.map() as mapped:
        return Image.frombytes("L", (mask.width, mask.height), mapped[:])


def left_half(mode: str, inside: Any, outside: Any, size: tuple[int, int] = (8, 4)) -> Image.Image:
    picture = plain(mode, outside, size)
    picture.paste(inside, (0, 0, size[0] // 2, size[1]))
    return picture


def palette_mask() -> bytes:
    picture = left_half("P", 0, 1)
    picture.putpalette([*RED, *ORANGE])
    return saved(picture, transparency=0)


@pytest.mark.parametrize(
    "raw",
    [
        saved(left_half("L", 255, 0)),
        saved(left_half("1", 1, 0)),
        saved(left_half("RGB", WHITE, (0, 0, 0))),
        saved(left_half("I;16", 65535, 0)),
        saved(left_half("CMYK", (0, 0, 0, 0), (0, 0, 0, 255)), "TIFF"),
        saved(left_half("RGBA", (*WHITE, 255), (0, 0, 0, 255))),  # opaque: its gray counts
        saved(left_half("RGBA", (0, 0, 0, 0), (*WHITE, 255))),  # OpenAI's: transparent is redrawn
        saved(left_half("LA", (9, 0), (9, 255))),
        saved(left_half("RGBA", (9, 9, 9, 0), (*WHITE, 255)), "WEBP", lossless=True, exact=True),
        palette_mask(),
    ],
    ids=["L", "1", "RGB", "16 bit", "CMYK", "opaque", "RGBA", "LA", "WebP", "palette"],
)
def test_a_mask_is_its_transparency_or_else_its_gray(raw: bytes) -> None:
    assert levels(raw).tobytes() == left_half("L", 255, 0).tobytes()


def test_a_mask_that_is_partly_transparent_has_levels_between() -> None:
    assert levels(saved(left_half("LA", (0, 55), (0, 255)))).getpixel((0, 0)) == 200


def test_transparency_in_one_strip_counts_for_the_whole_mask() -> None:
    size = (2048, 1100)  # three strips
    picture = plain("LA", (255, 255), size)
    picture.putpixel((0, 1099), (255, 0))
    found = levels(saved(picture, compress_level=1), ImageLimits(max_pixels=2048 * 1100))
    assert found.getextrema() == (0, 255)
    assert found.getbbox() == (0, 1099, 1, 1100)


def test_a_mask_is_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    found = levels(saved(left_half("L", 255, 0), exif=exif))
    assert found.size == (4, 8)
    assert found.getbbox() == (0, 0, 4, 4)


def test_a_mask_has_the_limits_of_a_picture_and_its_own_name() -> None:
    with pytest.raises(InvalidRequest, match="mask is 8x4 pixels; a side may have 4") as caught:
        levels(saved(left_half("L", 255, 0)), ImageLimits(max_side=4))
    assert caught.value.param == "mask"
    with pytest.raises(InvalidRequest, match="mask is empty"):
        levels(b"")
