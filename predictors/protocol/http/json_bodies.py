"""Bodies of REST requests: accepted media types, and strict JSON.

JSON follows RFC 8259 and is stricter where readers differ: UTF-8 only, no NaN or Infinity, no
overflowing number, no duplicate key, no lone surrogate, bounded depth and length. Whatever passes
here means the same to every reader, so nothing can be smuggled past a later check.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Mapping
from typing import Any

import orjson

from predictors.errors import InvalidRequest, TooLarge, UnsupportedMedia

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


def check_media(headers: Mapping[str, str], accepted: Collection[str] = JSON_MEDIA) -> None:
    """Raise `UnsupportedMedia` for a content type, charset or encoding that is not accepted.

    A missing content type is accepted: tritonclient sends none with its JSON.
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


def parse_json(raw: bytes) -> Any:
    """Parse a JSON text. Raises `InvalidRequest` or `TooLarge` with the reason.

    The number and depth of values are checked first, in time and memory linear in the text's
    length. It takes milliseconds per megabyte, mostly with the interpreter's lock held. More than
    64 KB belongs in a worker process.
    """
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
    """Raise for too many values, too deep nesting or too long numbers."""
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
