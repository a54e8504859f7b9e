"""Bodies of REST requests: read within limits, of an accepted media type, as strict JSON. Knows no
route and no field.

JSON is taken as RFC 8259 means it and a little stricter: UTF-8 only, no NaN or Infinity, no number
that overflows, no key twice in one object, no lone surrogate, bounded depth and length. What passes
here means the same to every reader, so nothing later can be smuggled past a check.
"""

from __future__ import annotations

import asyncio
import json
import math
import re
from collections.abc import Awaitable, Callable, Collection, Mapping, MutableMapping
from typing import Any

import orjson

from predictors.errors import (
    Cancelled,
    DeadlineExceeded,
    InvalidRequest,
    TooLarge,
    UnsupportedMedia,
)

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]

MAX_DEPTH = 32
MAX_SEPARATORS = 2**20  # commas: bounds what a body of millions of tiny values grows to in memory
BODY_TIMEOUT_S = 60.0  # for the whole body, once its head is here
JSON_MEDIA = frozenset({"", "application/json"})

_STRINGS = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_FILE = b";base64,"


def check_media(headers: Mapping[str, str], accepted: Collection[str] = JSON_MEDIA) -> None:
    """Raise `UnsupportedMedia` for a content type or encoding that is not understood.

    A missing content type is in order: tritonclient sends none with its JSON.
    """
    encoding = headers.get("content-encoding", "").strip().lower()
    if encoding not in {"", "identity"}:
        raise UnsupportedMedia(f"content-encoding {encoding[:32]!r} is not accepted; send it plain")
    media, _, options = headers.get("content-type", "").partition(";")
    media = media.strip().lower()
    if media not in accepted:
        names = ", ".join(sorted(accepted - {""} if isinstance(accepted, frozenset) else accepted))
        raise UnsupportedMedia(f"content-type {media[:64]!r} is not accepted; use {names}")
    charset = options.replace(" ", "").replace('"', "").lower().partition("charset=")[2]
    if charset.partition(";")[0] not in {"", "utf-8", "utf8", "us-ascii"}:
        raise UnsupportedMedia(f"charset {charset[:32]!r} is not accepted; use utf-8")


async def read_body(receive: Receive, headers: Mapping[str, str], limit: int) -> bytes:
    """The whole body of an ASGI request. Never holds more than `limit` bytes and one chunk.

    Raises `TooLarge` (before reading anything when the head announces it), `Cancelled` when the
    caller leaves, `DeadlineExceeded` when the body takes longer than a minute.
    """
    announced = headers.get("content-length", "")
    if announced.isdecimal() and int(announced[:20]) > limit:
        raise _too_large(limit)
    message = await receive()
    if message["type"] == "http.request" and not message.get("more_body", False):
        body: bytes = message.get("body", b"")
        if len(body) > limit:
            raise _too_large(limit)
        return body
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            return await _read_rest(message, receive, limit)
    except TimeoutError as error:
        raise DeadlineExceeded(f"the body took longer than {BODY_TIMEOUT_S:g} s") from error


async def _read_rest(message: MutableMapping[str, Any], receive: Receive, limit: int) -> bytes:
    body = bytearray()
    while True:
        if message["type"] == "http.disconnect":
            raise Cancelled("the caller left while sending the body")
        body += message.get("body", b"")
        if len(body) > limit:
            raise _too_large(limit)
        if not message.get("more_body", False):
            return bytes(body)
        message = await receive()


def _too_large(limit: int) -> TooLarge:
    return TooLarge(f"the body is larger than the limit of {limit} bytes")


def parse_json(raw: bytes) -> Any:
    """The value of a JSON text; raises `InvalidRequest` that says what is wrong with it."""
    rest = _without_files(raw)
    if rest.count(b"[") + rest.count(b"{") > MAX_DEPTH:
        _check_depth(rest)
    if rest.count(b",") > MAX_SEPARATORS:
        raise TooLarge(f"the body has more than {MAX_SEPARATORS} values")
    try:
        text = raw.decode("utf-8")
        if _SURROGATE.search(rest):
            orjson.loads(
                raw
            )  # refuses halves of pairs; json passes them on to whoever encodes next
        return _DECODER.decode(text)
    except UnicodeDecodeError as error:
        raise InvalidRequest("the body is not UTF-8") from error
    except json.JSONDecodeError as error:  # orjson's too
        where = f"line {error.lineno} column {error.colno}"
        raise InvalidRequest(f"the body is not valid JSON at {where}") from error
    except ValueError as error:  # a whole number of thousands of digits
        raise InvalidRequest("the body holds a number that is too long") from error


def _without_files(raw: bytes) -> bytes:
    """`raw` without what stands between `;base64,` and the next quote, unless it has escapes.

    A picture is a megabyte in which nothing is to be found, and each look at it takes as long as
    parsing it. Outside a string `;` is an error that the parser meets before whatever was cut.
    """
    kept, begin = [], 0
    while (at := raw.find(_FILE, begin)) >= 0:
        at += len(_FILE)
        end = raw.find(b'"', at)
        if end < 0:
            break
        kept.append(raw[begin:at] if raw.find(b"\\", at, end) < 0 else raw[begin:end])
        begin = end
    if not kept:
        return raw
    return b"".join([*kept, raw[begin:]])


def _check_depth(raw: bytes) -> None:
    depth = 0
    for character in _STRINGS.sub(b"", raw):
        if character in b"[{":
            depth += 1
            if depth > MAX_DEPTH:
                raise InvalidRequest(f"the body is nested deeper than {MAX_DEPTH} levels")
        elif character in b"]}":
            depth -= 1


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise InvalidRequest(f"the body has {name[:64]!r} twice in one object")
            seen.add(name)
    return found


def _constant(name: str) -> Any:
    raise InvalidRequest(f"the body holds {name}, which is not JSON")


def _float(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise InvalidRequest(f"the body holds the number {digits[:32]}, which is too large")
    return value


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_constant, parse_float=_float)
