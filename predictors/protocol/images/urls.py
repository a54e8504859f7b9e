"""Reads the bytes of a file from a data URL. Fetches no URL, opens no path."""

from __future__ import annotations

import base64
import binascii
import re

from predictors.errors import InvalidRequest

WHITE_SPACE = b" \t\r\n\v\f"

# the part of a data URL before the comma, at most `_MAX_HEAD` characters
_DATA_URL = re.compile(
    r"data:([\w.+-]+/[\w.+-]+)?((?:;[\w-]+=[\w.\"-]*)*)(;base64)?,", re.IGNORECASE
)
_MAX_HEAD = 256
_SCHEME = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]*):")


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
