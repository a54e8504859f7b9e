"""Reads files that callers send as text: data URLs and base64, as people write them.

Fetches no URL and opens no path. Takes time and memory linear in the text's length: it is searched
and copied a fixed number of times.
"""

from __future__ import annotations

import base64
import binascii
import re
from contextlib import suppress
from urllib.parse import unquote_to_bytes

import pybase64

from predictors.errors import InvalidRequest
from predictors.protocol.images.kinds import TEXT, UNKNOWN, is_film, is_readable, kind_of

WHITE_SPACE = b" \t\r\n\v\f"
MAX_HEAD = 1024  # bytes before the comma of a data URL
MAX_ESCAPES = 2**20  # percent escapes of other than base64's special signs; each is an object

_SCHEME = re.compile(rb"([a-zA-Z][a-zA-Z0-9+.-]*+):")
_HEAD = re.compile(rb'data:((?:[^",]|"[^"]*")*+),', re.IGNORECASE)
_PICTURE_TYPES = re.compile(rb"(?:image(?:/.*)?|\*/\*|(?:application|binary)/octet-stream)?")
_FILM_TYPES = re.compile(rb"(?:video(?:/.*)?|\*/\*|(?:application|binary)/octet-stream)?")
_FRAME_TYPE = b"video/jpeg"
_ESCAPED_COMMA = re.compile(rb"%2c", re.IGNORECASE)
_TO_STANDARD = bytes.maketrans(b"-_", b"+/")
# as encoders of URLs write base64; one search each
_ESCAPES = [
    (escape, sign)
    for sign in (b"+", b"/", b"=", b"\n", b"\r", b"-", b"_")
    for escape in {b"%%%02X" % sign[0], b"%%%02x" % sign[0]}
] + [(b"%20", b"")]

_EXPECTED = "send the picture itself as data:image/png;base64,..."
_EXPECTED_FILM = "send the film itself as data:video/mp4;base64,..."
_LOOK = 128  # characters of base64 that tell a picture
_LEAST = 40  # characters that the smallest picture has; a path may look like the first of them


def read_data_url(url: str, *, param: str = "image_url") -> bytes:
    """The bytes of a data URL, or of base64 alone if they are a picture's.

    The type that a data URL declares does not matter if the bytes are a picture's. Raises
    `InvalidRequest`.
    """
    text = _normal(url.encode("utf-8", "surrogatepass"))
    if _is_data_url(text):
        return _read(text, param)
    if len(text) >= _LEAST and _starts_picture(text):
        try:
            return _base64(text)
        except ValueError as error:
            raise InvalidRequest(f"{param} is base64 that is damaged", param=param) from error
    problem = "is a web address, and this server fetches none"
    if not _is_web_address(text):
        problem = "is not a data URL"
    raise InvalidRequest(f"{param} {problem}; {_EXPECTED}", param=param)


def read_film_url(url: str, *, param: str, at_most: int) -> tuple[tuple[bytes, ...], bool]:
    """The file of a film in a data URL, or in base64 alone, and False; or the pictures of vLLM's
    `data:video/jpeg;base64,FRAME,FRAME,...`, `at_most` so many, and True. Raises `InvalidRequest`.
    """
    text = _normal(url.encode("utf-8", "surrogatepass"))
    if not _is_data_url(text):
        if len(text) >= _LEAST and _starts_film(text):
            with suppress(ValueError):
                return (_base64(text),), False
        problem = "is not a data URL"
        if _is_web_address(text):
            problem = "is a web address, and this server fetches none"
        raise InvalidRequest(f"{param} {problem}; {_EXPECTED_FILM}", param=param)
    media, payload = _split(text, param, _EXPECTED_FILM)
    if media == _FRAME_TYPE:
        count = payload.count(b",") + 1
        if not 2 <= count <= at_most:
            message = f"{param} is a film of {count} frames; from 2 to {at_most} are taken"
            raise InvalidRequest(message, param=param)
        frames = [_damaged_or(frame, param) for frame in payload.split(b",")]
        return tuple(frames), True
    file = _damaged_or(payload, param)
    if not _FILM_TYPES.fullmatch(media) and not is_film(file):
        shown = media[:32].decode("ascii", "replace")
        raise InvalidRequest(f"{param} is a data URL of {shown}, not of a film", param=param)
    return (file,), False


def _damaged_or(payload: bytes, param: str) -> bytes:
    try:
        return _base64(payload)
    except ValueError as error:
        message = f"{param} is a data URL whose base64 is damaged"
        raise InvalidRequest(message, param=param) from error


def _split(url: bytes, param: str, expected: str) -> tuple[bytes, bytes]:
    """Media type, in lower case, and base64 of a data URL."""
    match = _HEAD.match(url, 0, MAX_HEAD)
    if match is None:
        raise InvalidRequest(f"{param} is a malformed data URL; {expected}", param=param)
    media, *options = [part.strip().lower() for part in match[1].split(b";")]
    if b"base64" not in (media, *options):
        raise InvalidRequest(f"{param} is a data URL without ';base64'", param=param)
    return b"" if media == b"base64" else media, url[match.end() :]


def read_base64(text: bytes, *, param: str, row: int | None = None) -> bytes:
    """The bytes of base64 or of a data URL. Raises `InvalidRequest` that names `param`, `row`."""
    text = _normal(text)
    if _is_data_url(text):
        try:
            return _read(text, param)
        except InvalidRequest as error:
            raise InvalidRequest(error.message, param=param, row=row) from error
    try:
        return _base64(text)
    except ValueError as error:
        problem = "is not base64"
        if _is_web_address(text):
            problem += " but a web address, and this server fetches none"
        raise InvalidRequest(f"{param} {problem}", param=param, row=row) from error


def _normal(text: bytes) -> bytes:
    """`text` without white space around it, and with a data URL's head not percent-encoded."""
    text = text.strip()
    if text[:7].lower() != b"data%3a":
        return text
    comma = _ESCAPED_COMMA.search(text, 0, MAX_HEAD)
    if comma is None:
        return text
    return unquote_to_bytes(text[: comma.start()]) + b"," + text[comma.end() :]


def _is_data_url(text: bytes) -> bool:
    return text[:5].lower() == b"data:"


def _is_web_address(text: bytes) -> bool:
    scheme = _SCHEME.match(text, 0, MAX_HEAD)
    return scheme is not None and scheme[1].lower() in {b"http", b"https"}


def _read(url: bytes, param: str) -> bytes:
    """The bytes of a data URL."""
    match = _HEAD.match(url, 0, MAX_HEAD)
    if match is None:
        raise InvalidRequest(f"{param} is a malformed data URL; {_EXPECTED}", param=param)
    media, *options = [part.strip().lower() for part in match[1].split(b";")]
    payload = url[match.end() :]
    if b"base64" in (media, *options):
        try:
            file = _base64(payload)
        except ValueError as error:
            message = f"{param} is a data URL whose base64 is damaged"
            raise InvalidRequest(message, param=param) from error
        media = b"" if media == b"base64" else media
    else:
        file = _plain(payload, param)
    if not _PICTURE_TYPES.fullmatch(media) and not is_readable(file):
        shown = media[:32].decode("ascii", "replace")
        raise InvalidRequest(f"{param} is a data URL of {shown}, not of a picture", param=param)
    return file


def _plain(payload: bytes, param: str) -> bytes:
    """The bytes of a data URL without `;base64` (RFC 2397), or of a picture's base64 in one."""
    if _starts_picture(payload):
        with suppress(ValueError):
            return _base64(payload)
    if payload.count(b"%") > MAX_ESCAPES:
        message = f"{param} has more than {MAX_ESCAPES} percent escapes; send it as base64"
        raise InvalidRequest(message, param=param)
    file = unquote_to_bytes(payload)
    if kind_of(file) in (UNKNOWN, TEXT):
        raise InvalidRequest(f"{param} is a data URL without ';base64'", param=param)
    return file


def _base64(text: bytes) -> bytes:
    """The bytes of base64: either alphabet, padded or not, with white space and percent escapes.
    Raises `ValueError` for any other sign, and for a length that none has."""
    with suppress(binascii.Error):  # most are written as the standard says: a pass of SIMD
        return pybase64.b64decode(text, validate=True)
    signs = _signs(text)
    return base64.b64decode(signs + b"=" * (-len(signs) % 4), validate=True)


def _signs(text: bytes) -> bytes:
    """`text` in the standard alphabet, without escapes, white space and padding."""
    if b"%" in text:
        for escape, sign in _ESCAPES:
            text = text.replace(escape, sign)
        if b"%" in text and text.count(b"%") <= MAX_ESCAPES:
            text = unquote_to_bytes(text)
    return text.translate(_TO_STANDARD, WHITE_SPACE).rstrip(b"=")


def _starts_picture(text: bytes) -> bool:
    """True if `text` begins with base64 of a picture that is read."""
    return is_readable(_beginning(text))


def _starts_film(text: bytes) -> bool:
    return is_film(_beginning(text))


def _beginning(text: bytes) -> bytes:
    """The first bytes of base64, empty for another text."""
    look = text[:_LOOK]
    signs = _signs(look[:-2] if b"%" in look[-2:] else look)
    try:
        return base64.b64decode(signs[: len(signs) // 4 * 4], validate=True)
    except ValueError:
        return b""
