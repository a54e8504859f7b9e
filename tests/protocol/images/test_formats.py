"""Every kind of picture that is read, and what comes with it: profiles, texts, films, previews."""

from __future__ import annotations

import importlib.util
import os
import struct
import zlib
from collections.abc import Callable
from contextlib import suppress
from io import BytesIO
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, features
from PIL.PngImagePlugin import PngInfo

from predictors.errors import InvalidRequest, ServingError
from predictors.protocol import tasks
from predictors.protocol.images.decode import decode_pixels
from predictors.protocol.images.kinds import ACCEPTED, kind_of
from predictors.protocol.images.memory import decoding_bytes
from predictors.settings import ImageLimits
from predictors.workers.pool import Workers
from tests.http.pictures import chunk, png_of
from tests.protocol.images import stored_files
from tests.protocol.images.test_decode import saved
from tests.protocol.images.tiff_files import tiff

LIMITS = ImageLimits(max_pixels=10**6, max_side=4000)
ORANGE, BLUE, GREEN = (200, 100, 50), (0, 0, 255), (0, 255, 0)
HAS_HEIC = importlib.util.find_spec("pi_heif") is not None
needs_heic = pytest.mark.skipif(not HAS_HEIC, reason="pi-heif is not installed: `make setup`")

PICTURE = Image.new("RGB", (64, 48), ORANGE)
PICTURE.paste(BLUE, (0, 0, 32, 24))
JPEG, PNG = saved(PICTURE, "JPEG", quality=95), saved(PICTURE)
FILM = b"\0\0\0\x18ftypmp42" + b"\xff\xda" * 101 + b"\xff\xd9"


def decoded(raw: bytes, limits: ImageLimits = LIMITS) -> Image.Image:
    pixels = decode_pixels(raw, limits, in_worker=True)
    with pixels.memory.map() as mapped:
        return Image.frombytes("RGB", (pixels.width, pixels.height), mapped[:])


def check(raw: bytes, tolerance: int = 6) -> None:
    """The file shows `PICTURE`."""
    picture = decoded(raw)
    assert picture.size == PICTURE.size
    for at in ((8, 8), (50, 8), (8, 40), (50, 40)):
        found, expected = picture.getpixel(at), PICTURE.getpixel(at)
        assert max(abs(a - b) for a, b in zip(found, expected, strict=True)) <= tolerance  # type: ignore[arg-type]


def refused(raw: bytes, limits: ImageLimits = LIMITS) -> str:
    with pytest.raises(InvalidRequest) as caught:
        decode_pixels(raw, limits, in_worker=True)
    return caught.value.message


# -- formats ---------------------------------------------------------------------------------------
READ: dict[str, tuple[str, dict[str, Any]]] = {
    "PNG": ("PNG", {}),
    "JPEG": ("JPEG", {"quality": 95, "subsampling": 0}),
    "progressive JPEG": ("JPEG", {"quality": 95, "subsampling": 0, "progressive": True}),
    "WebP": ("WEBP", {"lossless": True}),
    "BMP": ("BMP", {}),
    "AVIF": ("AVIF", {"quality": 95, "subsampling": "4:4:4"}),
    "TIFF": ("TIFF", {}),
    "TIFF, LZW": ("TIFF", {"compression": "tiff_lzw"}),
    "TIFF, Deflate": ("TIFF", {"compression": "tiff_adobe_deflate"}),
    "TIFF, PackBits": ("TIFF", {"compression": "packbits"}),
    "TIFF, JPEG": ("TIFF", {"compression": "jpeg", "quality": 95}),
    "TIFF in strips": ("TIFF", {"compression": "tiff_lzw", "strip_size": 64 * 3 * 8}),
    "big TIFF": ("TIFF", {"big_tiff": True}),
    "big TIFF, LZW": ("TIFF", {"big_tiff": True, "compression": "tiff_lzw"}),
}


def test_this_pillow_decodes_every_format() -> None:
    assert features.check("avif")
    assert features.check("webp")
    assert features.check("libtiff")
    if os.environ.get("CI"):
        assert HAS_HEIC


@pytest.mark.parametrize(("kind", "options"), READ.values(), ids=READ)
def test_a_format_is_read(kind: str, options: dict[str, Any]) -> None:
    check(saved(PICTURE, kind, **options))


@needs_heic
@pytest.mark.parametrize("name", ["SMALL", "TWO"])
def test_heic_is_read_and_of_several_pictures_the_main_one(name: str) -> None:
    check(getattr(stored_files, name), tolerance=12)


@needs_heic
def test_heic_is_upright_on_white_and_of_any_depth() -> None:
    turned = decoded(stored_files.TURNED)
    assert turned.size == PICTURE.size
    assert turned.getpixel((8, 8))[2] > 200 > turned.getpixel((50, 40))[2]  # type: ignore[index]
    assert min(decoded(stored_files.ALPHA).getpixel((9, 9))) >= 250  # type: ignore[arg-type,type-var]
    assert abs(decoded(stored_files.TEN).getpixel((9, 9))[0] - 128) <= 3  # type: ignore[index]


def test_heic_is_decoded_in_worker_processes_alone() -> None:
    with pytest.raises(InvalidRequest, match="is a HEIC picture, which this server can't decode"):
        decode_pixels(stored_files.SMALL, LIMITS)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGBA", "CMYK", "I;16", "I;16B"])
@pytest.mark.parametrize("compression", [None, "tiff_lzw"])
def test_every_kind_of_tiff_keeps_its_brightness(mode: str, compression: str | None) -> None:
    raw = BytesIO()
    gray = Image.new("L", (16, 16), 255)
    gray.paste(0, (0, 0, 8, 16))
    if mode.startswith("I;16"):
        picture = Image.new(mode, (16, 16), 200 * 256)
        picture.paste(40 * 256, (0, 0, 8, 16))
    else:
        picture = gray.convert("RGBA").convert(mode) if mode != "CMYK" else gray.convert("CMYK")
    try:
        picture.save(raw, "TIFF", compression=compression)
    except OSError:
        pytest.skip("Pillow writes no such TIFF")
    found = decoded(raw.getvalue())
    assert max(found.getpixel((2, 2))) <= 40  # type: ignore[arg-type,type-var]
    assert min(found.getpixel((12, 2))) >= 199  # type: ignore[arg-type,type-var]


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA"])
def test_every_kind_of_bmp_keeps_its_colours(mode: str) -> None:
    gray = Image.new("L", (16, 16), 255)
    gray.paste(0, (0, 0, 8, 16))
    found = decoded(saved(gray.convert("RGB").convert(mode), "BMP"))
    assert (found.getpixel((2, 2)), found.getpixel((12, 2))) == ((0, 0, 0), (255, 255, 255))


def test_a_bmp_whose_alpha_was_left_blank_is_opaque() -> None:
    blank = PICTURE.convert("RGBA")
    blank.putalpha(0)
    check(saved(blank, "BMP"))


def test_a_still_gif_is_read_with_its_transparency_and_comments() -> None:
    still = PICTURE.quantize(8)
    check(saved(still, "GIF"))
    check(saved(still, "GIF", comment=b"x" * 2000, interlace=1))
    clear = Image.new("P", (8, 8), 1)
    clear.putpalette([*ORANGE, *BLUE])
    assert decoded(saved(clear, "GIF", transparency=1)).getpixel((3, 3)) == (255, 255, 255)
    whole = saved(still, "GIF")
    check(whole + b"behind its end" * 100)
    check(whole[:-1])


# -- what comes with a picture ---------------------------------------------------------------------
def noise(size: int) -> bytes:
    return bytes(i * i * 7919 >> 5 & 0xFF for i in range(size))


def with_app(raw: bytes, marker: int, payload: bytes) -> bytes:
    """A JPEG with a further segment in its header."""
    segment = struct.pack(">BBH", 0xFF, marker, len(payload) + 2) + payload
    return raw[:2] + segment + raw[2:]


def with_chunk(kind: bytes, payload: bytes) -> bytes:
    """A PNG with a further chunk before its data."""
    return PNG[:33] + chunk(kind, payload) + PNG[33:]


def damaged_exif() -> bytes:
    """Its directory says that it has 65,535 tags."""
    return b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + noise(600)


def with_riff(kind: bytes, payload: bytes) -> bytes:
    """A WebP with metadata behind its data."""
    exif = {"exif": b"Exif\0\0" + b"II*\0"} if kind == b"EXIF" else {"xmp": b"x"}
    raw = saved(PICTURE, "WEBP", lossless=True, **exif)
    at = raw.index(kind)
    body = raw[12:at] + kind + struct.pack("<I", len(payload)) + payload + bytes(len(payload) % 2)
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body


LARGE = 3_000_000
BESIDE: dict[str, Callable[[], bytes]] = {
    "JPEG, a film behind it": lambda: JPEG + FILM,
    "JPEG, scans behind it": lambda: JPEG + b"\xff\xda" * 101,
    "JPEG, another JPEG behind it": lambda: JPEG + saved(Image.new("RGB", (9, 9)), "JPEG"),
    "progressive JPEG, a film behind it": lambda: saved(PICTURE, "JPEG", progressive=True) + FILM,
    "JPEG, a profile in 250 pieces": lambda: with_app(
        JPEG, 0xE2, b"ICC_PROFILE\0\1\1" + noise(65_000)
    ).replace(b"\xff\xd8", b"\xff\xd8" + (b"\xff\xe2\xff\xff" + bytes(65_533)) * 250, 1),
    "JPEG, damaged EXIF": lambda: with_app(JPEG, 0xE1, damaged_exif()),
    "JPEG, several EXIF": lambda: with_app(
        with_app(with_app(JPEG, 0xE1, damaged_exif()), 0xE1, b"http://ns.adobe.com/xap/1.0/\0<x>"),
        0xE1, b"Exif\0\0",
    ),
    "JPEG, damaged Photoshop block": lambda: with_app(JPEG, 0xED, b"Photoshop 3.0\x008BIM\4"),
    "JPEG, an index of pictures that are not there": lambda: with_app(
        JPEG, 0xE2, b"MPF\0II*\0\x08\0\0\0\xff\xff" + bytes(64)
    ),
    "JPEG, comments": lambda: with_app(JPEG, 0xFE, b"\xff\xda" * 30_000),
    "PNG, rubbish behind it": lambda: PNG + b"\0\1\2" * 9999,
    "PNG, a large text": lambda: with_chunk(b"tEXt", b"k\0" + b"x" * LARGE),
    "PNG, a large compressed text": lambda: with_chunk(
        b"zTXt", b"k\0\0" + zlib.compress(bytes(LARGE))
    ),
    "PNG, a large compressed Unicode text": lambda: with_chunk(
        b"iTXt", b"k\0\1\0\0\0" + zlib.compress(bytes(LARGE))
    ),
    "PNG, a text that inflates to 200 MB": lambda: with_chunk(
        b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(bytes(200_000_000), 1)
    ),
    "PNG, large XMP": lambda: with_chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + b"x" * LARGE),
    "PNG, a large profile": lambda: with_chunk(b"iCCP", b"k\0\0" + zlib.compress(bytes(LARGE))),
    "PNG, a profile of no known method": lambda: with_chunk(b"iCCP", b"k\0\7abc"),
    "PNG, large EXIF": lambda: with_chunk(b"eXIf", b"MM\0*\0\0\0\x08\xff\xff" + bytes(LARGE)),
    "PNG, damaged EXIF": lambda: with_chunk(b"eXIf", damaged_exif()[6:]),
    "PNG, a short gamma": lambda: with_chunk(b"gAMA", b"\0"),
    "PNG, a chunk of text with a wrong checksum": lambda: (
        PNG[:33] + b"\0\0\0\3tEXtk\0xABCD" + PNG[33:]
    ),
    "PNG, an animation of one frame": lambda: with_chunk(b"acTL", struct.pack(">II", 1, 0)),
    "WebP, damaged EXIF": lambda: with_riff(b"EXIF", damaged_exif()),
    "WebP, large EXIF": lambda: with_riff(b"EXIF", damaged_exif() + bytes(LARGE)),
    "WebP, large XMP": lambda: with_riff(b"XMP ", b"x" * LARGE),
    "WebP, rubbish behind it": lambda: saved(PICTURE, "WEBP", lossless=True) + FILM,
    "WebP, a large profile": lambda: saved(
        PICTURE, "WEBP", lossless=True, icc_profile=noise(200_000) + bytes(LARGE)
    ),
    "AVIF, rubbish behind it": lambda: saved(PICTURE, "AVIF", quality=95) + bytes(999),
    "BMP, rubbish behind it": lambda: saved(PICTURE, "BMP") + FILM,
    "TIFF, rubbish behind it": lambda: saved(PICTURE, "TIFF", compression="tiff_lzw") + FILM,
}  # fmt: skip


@pytest.mark.parametrize("make", BESIDE.values(), ids=BESIDE)
def test_what_comes_with_a_picture_does_not_matter(make: Callable[[], bytes]) -> None:
    check(make(), tolerance=40)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
@pytest.mark.parametrize("orientation", [3, 6])
def test_the_orientation_is_kept(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = PICTURE.transpose(
        Image.Transpose.ROTATE_180 if orientation == 3 else Image.Transpose.ROTATE_90
    )
    check(saved(stored, kind, exif=exif.tobytes(), quality=95), tolerance=40)


def test_the_orientation_of_a_png_may_be_in_a_text() -> None:
    exif = Image.Exif()
    exif[0x0112] = 3
    hexed = exif.tobytes().hex()
    info = PngInfo()
    info.add_text("Raw profile type exif", f"\nexif\n{len(hexed) // 2:8d}\n{hexed}\n", zip=True)
    check(saved(PICTURE.transpose(Image.Transpose.ROTATE_180), pnginfo=info))


# -- what is refused -------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom", "is an MP4 video"),
        (b"\0\0\0\x18ftypqt  \0\0\0\0qt  ", "is an MP4 video"),
        (b"\0\0\0\x18ftypcrx \0\0\0\1crx isom", "is a camera's raw file"),
        (b"\x1a\x45\xdf\xa3" + bytes(40), "is a WebM or Matroska video"),
        (b"RIFF\0\0\0\0AVI LIST", "is an AVI video"),
        (b"RIFF\0\0\0\0WAVEfmt ", "is a WAV recording"),
        (b"\xff\x0a" + bytes(30), "is a JPEG XL picture"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "is a JPEG XL picture"),
        (b"II*\0\x10\0\0\0CR\2\0", "is a camera's raw file"),
        (b"IIRO\x08\0\0\0", "is a camera's raw file"),
        (b"FUJIFILMCCD-RAW 0201", "is a camera's raw file"),
        (b"\x1f\x8b\x08" + bytes(30), "is a gzip archive"),
        (b"\xef\xbb\xbf  <!DOCTYPE html><p>", "is an HTML page"),
        (b"<html><svg>", "is an SVG drawing"),
        (b"<?xml version='1.0'?><a/>", "is an XML text"),
        (b'{"error": "not found"}', "is a JSON text"),
        (b"%!PS-Adobe", "is a PostScript document"),
        (b"\n\n%PDF-1.7\n", "is a PDF document"),
        (b"data:image/png;base64,AAAA", "is a data URL as text, where the bytes of the file"),
        (b"https://example.com/a.png", "is a web address, and this server fetches none"),
        (b"iVBORw0KGgoAAAANSUhEUgAA", "is base64 text of a PNG picture, where the bytes"),
        ("grün".encode("utf-16"), "is text"),
        (b"BM is how this text begins", "is text"),
        (b"\x7fELF" + bytes(30), "is a program"),
        (noise(300), "is no picture of a known kind"),
        (saved(PICTURE, "TIFF", save_all=True, append_images=[PICTURE] * 2), "a TIFF of 3 pages"),
        (saved(Image.new("F", (9, 9)), "TIFF"), "with signed or real samples"),
        (saved(Image.new("I", (9, 9)), "TIFF"), "with signed or real samples"),
        (tiff({259: 34712}), "compressed by JPEG 2000"),
        (tiff({259: 50000}), "compressed by Zstandard"),
        (tiff({259: 12345}), "compressed by method 12345"),
        (tiff({258: 12}), "samples of 12 bits"),
        (tiff({262: 8}), "of colour space 8"),
        (tiff({262: 0, 258: 16}), "of colour space 0"),
        (tiff({50706: 1}), "is a camera's raw file"),
        (tiff({254: 1}), "is a camera's raw file"),
        (tiff({259: 8}, strip_bytes=10**6), "strips or tiles do not fit its file"),
        (tiff({257: 70_000, 278: 1}), "in more than 65536 strips or tiles"),
        (tiff({322: 65_520, 323: 65_520}), "tiles do not fit its size"),
        (tiff({256: 0}), "whose header is damaged"),
        (tiff({256: 5000}), "a side may have 4000"),
        (tiff({}, num_tags=60_000), "of more than 16384 tags"),
        (tiff({})[:60], "whose header is damaged"),
        (PNG[:12] + b"CgBI" + PNG[16:], "in the form that Xcode makes"),
        (png_of(8, 8, *[chunk(b"IDAT", b"")] * 2**16), "of more than 65536 chunks"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_what_is_not_read_is_refused_by_its_name(raw: bytes, words: str) -> None:
    message = refused(raw)
    assert words in message, message
    assert len(message) < 250


def test_the_message_says_what_is_taken() -> None:
    assert refused(b"%PDF-1.7") == f"image is a PDF document; taken are pictures in {ACCEPTED}"


def test_a_sequence_is_refused_by_its_frames() -> None:
    for kind in ("GIF", "PNG", "WEBP", "AVIF"):
        frames = [Image.new("RGB", (16, 16), (60 * i, 0, 0)) for i in range(3)]
        raw = saved(frames[0], kind, save_all=True, append_images=frames[1:])
        assert refused(raw) == "image is an animation of 3 frames; send a single picture"


def test_runs_of_a_large_bmp_are_refused_before_they_are_read() -> None:
    limits = ImageLimits()
    raw = bytearray(saved(PICTURE.convert("L"), "BMP"))
    raw[18:26] = struct.pack("<ii", 3000, 3000)
    raw[30] = 1
    assert "with run-length compression" in refused(bytes(raw), limits)


def test_a_frame_beyond_a_small_gif_counts() -> None:
    raw = bytearray(saved(PICTURE.quantize(8), "GIF"))
    at = raw.index(b",\0\0\0\0" + struct.pack("<HH", 64, 48))
    raw[at + 5 : at + 9] = struct.pack("<HH", 60_000, 60_000)
    assert "pixels" in refused(bytes(raw))
    assert decoding_bytes(bytes(raw), 10**12) > 60_000**2


def test_memory_is_estimated_from_every_header() -> None:
    side = {"GIF": PICTURE.quantize(8), "BMP": PICTURE, "TIFF": PICTURE, "AVIF": PICTURE}
    for kind, picture in side.items():
        large = picture.resize((640, 480))
        least, more = (decoding_bytes(saved(p, kind), 10**7) for p in (picture, large))
        assert more - least > 11 * (640 * 480 - 64 * 48), kind
    assert decoding_bytes(stored_files.SMALL, 10**7) < 5 * 2**20
    assert decoding_bytes(saved(PICTURE, "AVIF")[:100], 10**7) > 10**8  # no size: the largest


def test_data_that_need_far_more_memory_than_the_header_tells_are_refused(
    workers: Workers,
) -> None:
    task = workers.submit(tasks.DECODE_PICTURE, stored_files.LYING_AVIF, LIMITS, "image", 2)
    with pytest.raises(InvalidRequest, match="row 2: image "):
        task.result()


def test_a_file_can_t_make_a_decoder_write_to_the_log(capfd: pytest.CaptureFixture[str]) -> None:
    raw = bytearray(saved(PICTURE, "TIFF", compression="tiff_lzw"))
    with Image.open(BytesIO(raw)) as opened:
        (start,), (size,) = (opened.tag_v2[tag] for tag in (273, 279))  # type: ignore[attr-defined]
    raw[start + size // 2] ^= 0x55
    workers = Workers(tasks.MODULES, count=2)
    try:
        with suppress(InvalidRequest):
            workers.submit(tasks.DECODE_PICTURE, bytes(raw), LIMITS, "image", None).result()
        assert capfd.readouterr().err == ""
        with suppress(InvalidRequest):  # in this process it would
            decode_pixels(bytes(raw), LIMITS)
        assert "LZWDecode" in capfd.readouterr().err
    finally:
        workers.close()


# -- damaged files ---------------------------------------------------------------------------------
WHOLE = [
    PNG,
    JPEG,
    saved(PICTURE, "JPEG", progressive=True),
    saved(PICTURE, "WEBP", lossless=True),
    saved(PICTURE.quantize(8), "GIF"),
    saved(PICTURE.resize((16, 12)), "BMP"),
    saved(PICTURE.quantize(8).resize((16, 12)), "BMP"),
    saved(PICTURE, "AVIF"),
    saved(PICTURE, "TIFF", compression="tiff_lzw"),
    saved(PICTURE, "TIFF", compression="jpeg"),
    saved(PICTURE, "TIFF", compression="tiff_adobe_deflate"),
    saved(PICTURE.convert("1"), "TIFF", compression="group4"),
    *([stored_files.SMALL] if HAS_HEIC else []),
]
_FLIPS = st.lists(st.tuples(st.integers(0, 2**16), st.integers(0, 255)), max_size=6)


@pytest.fixture(scope="module")
def workers() -> Any:
    """Processes: a decoder that a file crashes must not end the tests."""
    workers = Workers(tasks.MODULES, count=2)
    yield workers
    workers.close()


@settings(max_examples=400)
@given(st.sampled_from(range(len(WHOLE))), _FLIPS, st.integers(0, 2**16) | st.none())
def test_a_damaged_file_is_read_or_refused(
    workers: Workers, which: int, flips: list[tuple[int, int]], cut: int | None
) -> None:
    raw = bytearray(WHOLE[which])
    for at, value in flips:
        raw[at % min(len(raw), 400)] = value
    file = bytes(raw if cut is None else raw[: cut % len(raw)])
    assert kind_of(file).name
    assert decoding_bytes(file, LIMITS.max_pixels) > 0
    try:
        workers.submit(tasks.DECODE_PICTURE, file, LIMITS, "image", 1).result()
    except ServingError as error:
        if not isinstance(error, InvalidRequest):
            raise
        assert error.message.startswith("row 1: image ")  # noqa: PT017
        assert " 0x" not in error.message  # noqa: PT017
