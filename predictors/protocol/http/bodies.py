"""Bodies of REST requests: reading within limits, accepted media types, and strict JSON.

A body of up to 1 MiB is `bytes`. A larger one is written to shared memory as it arrives, from where
a worker process reads it, so the server process never holds it. JSON follows RFC 8259 and is
stricter where readers differ, so that nothing can be smuggled past a later check: UTF-8 only, no
NaN or Infinity, no overflowing number, no duplicate key, no lone surrogate, bounded depth and
length.
"""

from __future__ import annotations

import asyncio
import json
import math
import re
import time
from codecs import BOM_UTF8
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, MutableMapping
from contextlib import asynccontextmanager
from typing import Any

import orjson

from predictors.errors import (
    Cancelled,
    DeadlineExceeded,
    InvalidRequest,
    TooLarge,
    UnsupportedMedia,
)
from predictors.protocol.bytes_in_flight import UNCOUNTED_BYTES, Charge
from predictors.protocol.http.inflating import Inflation, codings_of
from predictors.workers.messages import SharedMemory

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Body = bytes | SharedMemory

INLINE_BYTES = UNCOUNTED_BYTES  # largest body that is parsed on the event loop
SHARED_BYTES = 2**20  # a larger body is parsed by a worker process instead of a thread
BODY_TIMEOUT_S = 60.0  # for the whole body, after its head
PIECE_BYTES = 64 * 1024  # that must arrive within each `server.body_timeout_s`
_BODY_TIMEOUT_MESSAGE = f"the body took longer than {BODY_TIMEOUT_S:g} s"

MAX_DEPTH = 32
MAX_VALUES = 2**17  # per body: strings, commas, lists and objects; each becomes a Python object
MAX_NUMBER = 1000  # digits and signs of one number
SMALL_BYTES = MAX_NUMBER  # a smaller body can only exceed the depth limit
MAX_FILES = 4096  # data URLs excluded from the search for values
JSON_MEDIA = frozenset({"", "application/json"})

# possessive quantifiers: an unterminated string is scanned once, not again from each backslash
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)', re.DOTALL)
_NUMBER = re.compile(rb"[0-9.eE+-]++")
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_FILE = b";base64,"
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))


async def receive_small_body(
    receive: Receive, headers: Mapping[str, str], limit: int, timeout_s: float
) -> bytes:
    """A body of at most `limit` bytes, inflated, within `timeout_s`. The limit must be so small
    that the event loop may inflate it: some KiB."""
    codings = codings_of(headers.get("content-encoding", ""))
    async with fail_at(time.monotonic() + timeout_s, slow_body_message(timeout_s)):
        raw = await receive_body(receive, headers, limit)
    if codings and raw:
        inflation = Inflation(raw, codings, limit)
        while not inflation.is_done:
            inflation.advance()
        raw = inflation.body(SHARED_BYTES)
    assert isinstance(raw, bytes)
    return raw


async def receive_body(
    receive: Receive,
    headers: Mapping[str, str],
    limit: int,
    *,
    make_charge: Callable[[], Charge] | None = None,
    piece_timeout_s: float = BODY_TIMEOUT_S,
) -> Body:
    """Receive the whole body of an ASGI request. Buffers at most `limit` bytes and one chunk.

    Raises `TooLarge` (before reading if Content-Length exceeds the limit), `Cancelled` when the
    client disconnects, `Overloaded` when all bodies together hold too many bytes, and
    `DeadlineExceeded` when 64 KiB take longer than `piece_timeout_s` or the whole body longer than
    a minute.
    """
    check_announced(headers, limit)
    message = await receive()
    if message["type"] == "http.request" and not message.get("more_body", False):
        body: bytes = message.get("body", b"")
        if len(body) > limit:
            raise _too_large(len(body), limit)
        if len(body) <= INLINE_BYTES:
            return body
    charge = None if make_charge is None else make_charge()
    async with fail_at(time.monotonic() + BODY_TIMEOUT_S, _BODY_TIMEOUT_MESSAGE):
        return await _read_rest(message, receive, limit, charge, piece_timeout_s)


async def _read_rest(
    message: MutableMapping[str, Any],
    receive: Receive,
    limit: int,
    charge: Charge | None,
    piece_timeout_s: float,
) -> Body:
    loop = asyncio.get_running_loop()
    small, large = bytearray(), None
    size = due = 0
    try:
        async with asyncio.timeout(piece_timeout_s) as piece:
            while True:
                if message["type"] == "http.disconnect":
                    raise Cancelled("the caller left while sending the body")
                chunk = message.get("body", b"")
                size += len(chunk)
                if size > limit:
                    raise _too_large(f"at least {size}", limit)
                if charge is not None:
                    charge.add(len(chunk))
                if large is None and size > SHARED_BYTES:
                    large = SharedMemory.empty()
                    large.append(small)
                if large is None:
                    small += chunk
                else:
                    large.append(chunk)
                if not message.get("more_body", False):
                    return bytes(small) if large is None else large
                if size >= due + PIECE_BYTES:
                    due = size
                    piece.reschedule(loop.time() + piece_timeout_s)
                message = await receive()
    except TimeoutError as error:
        raise DeadlineExceeded(slow_body_message(piece_timeout_s)) from error
    except BaseException:
        if large is not None:
            large.close()  # now: an exception keeps its frames alive for a while
        raise


@asynccontextmanager
async def fail_at(deadline: float | None, message: str) -> AsyncIterator[None]:
    """Cancel the block at `deadline` (`time.monotonic()` seconds) with `DeadlineExceeded`."""
    left_s = None if deadline is None else max(0.0, deadline - time.monotonic())
    try:
        async with asyncio.timeout(left_s):
            yield
    except TimeoutError as error:
        raise DeadlineExceeded(message) from error


def slow_body_message(seconds: float) -> str:
    return f"{PIECE_BYTES // 1024} KiB of the body took longer than {seconds:g} s"


def check_announced(headers: Mapping[str, str], limit: int) -> None:
    """Raise `TooLarge` for a body whose head says that it has more than `limit` bytes."""
    announced = headers.get("content-length", "")
    if announced.isdecimal() and (size := int(announced[:20])) > limit:
        raise _too_large(size if len(announced) <= 20 else f"at least {size}", limit)


def _too_large(size: int | str, limit: int) -> TooLarge:
    return TooLarge(f"the body is larger than the limit of {limit} bytes: it has {size}")


# -- media types and JSON ------------------------------------------------------------------------
def check_media(headers: Mapping[str, str], accepted: Collection[str] = JSON_MEDIA) -> None:
    """Raise `UnsupportedMedia` for a content type or charset that is not accepted.

    A missing content type is accepted: tritonclient sends none with its JSON.
    """
    sent = headers.get("content-type", "")
    if sent in accepted:
        return
    media, _, options = sent.partition(";")
    media = media.strip().lower()
    if media not in accepted:
        names = ", ".join(sorted(accepted - {""} if isinstance(accepted, frozenset) else accepted))
        raise UnsupportedMedia(f"content-type {media[:64]!r} is not accepted; use {names}")
    charset = options.replace(" ", "").replace('"', "").lower().partition("charset=")[2]
    if charset.partition(";")[0] not in {"", "utf-8", "utf8", "us-ascii"}:
        raise UnsupportedMedia(f"charset {charset[:32]!r} is not accepted; use utf-8")


def parse_json(raw: bytes) -> Any:
    """Parse a JSON text. Raises `InvalidRequest` or `TooLarge` with the reason.

    The number and depth of values are checked first, in time and memory linear in the text's
    length. It takes milliseconds per megabyte, mostly with the interpreter's lock held. More than
    64 KB belongs in a worker process.
    """
    if raw.startswith(BOM_UTF8):  # Windows programs write it; RFC 8259, 8.1 lets a parser skip it
        raw = raw[len(BOM_UTF8) :]
    rest = raw if len(raw) < SMALL_BYTES else _without_files(raw)
    if len(raw) >= SMALL_BYTES or raw.count(b"[") + raw.count(b"{") > MAX_DEPTH:
        _check_size(rest)
    try:
        text = raw.decode("utf-8")
        if _SURROGATE.search(rest):
            # orjson refuses lone surrogates; json accepts them, and a later encoder would fail
            orjson.loads(raw)
        return _DECODER.decode(text)
    except UnicodeDecodeError as error:
        raise InvalidRequest("the body is not UTF-8") from error
    except json.JSONDecodeError as error:  # also raised by orjson
        where = f"line {error.lineno} column {error.colno}"
        raise InvalidRequest(f"the body is not valid JSON at {where}") from error
    except ValueError as error:  # an integer of thousands of digits
        raise InvalidRequest("the body holds a number that is too long") from error


def _without_files(raw: bytes) -> bytes:
    """`raw` without the data between `;base64,` and the next quote, unless that contains escapes.

    A picture is a megabyte with nothing to find, and each scan of it would take as long as parsing
    it. Outside a string `;` is an error, which the parser meets before anything that was cut out.
    """
    kept: list[bytes] = []
    begin = 0
    while len(kept) < MAX_FILES and (at := raw.find(_FILE, begin)) >= 0:
        at += len(_FILE)
        end = raw.find(b'"', at)
        if end < 0:
            break
        kept.append(raw[begin:at] if raw.find(b"\\", at, end) < 0 else raw[begin:end])
        begin = end
    if not kept:
        return raw
    return b"".join([*kept, raw[begin:]])


def _check_size(raw: bytes) -> None:
    # an upper bound of the strings: no opening quote has a backslash before it
    if raw.count(b'"') - raw.count(b'\\"') > 2 * MAX_VALUES:
        raise _too_many_values()
    structure = _STRING.sub(b"", raw)
    brackets = structure.translate(None, _NO_BRACKETS)
    if structure.count(b",") > MAX_VALUES or len(brackets) > 2 * MAX_VALUES:
        raise _too_many_values()
    if len(brackets) > MAX_DEPTH:
        _check_depth(brackets)
    for number in _NUMBER.finditer(structure):
        if number.end() - number.start() > MAX_NUMBER:
            raise InvalidRequest("the body holds a number that is too long")


def _too_many_values() -> TooLarge:
    return TooLarge(f"the body has more than {MAX_VALUES} values; split the request")


def _check_depth(brackets: bytes) -> None:
    depth = 0
    for bracket in brackets:
        if bracket in b"[{":
            depth += 1
            if depth > MAX_DEPTH:
                raise InvalidRequest(f"the body is nested deeper than {MAX_DEPTH} levels")
        else:
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
