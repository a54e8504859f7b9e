"""`content_type` and `encoding` of V2 requests, as MLServer's clients and KServe's transformers
send them: taken where they agree with what is served, else refused.

Workers import this module, so nothing here may load gRPC.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from typing import Any

from predictors.errors import InvalidRequest

MAX_SHOWN = 32
TEXT = frozenset({"str", "np", "text", "text/plain"})
NUMBERS = frozenset({"np"})
FILE = frozenset({"base64", "application/octet-stream", "image/*"})
"""And `str` for a file that came as text, and every other `image/...`."""
REQUEST = frozenset({"str", "np", "pd"})
"""MLServer's decoders of a whole request that make of one what its inputs say already."""
BASE64 = "base64"
_UTF8 = frozenset({"utf-8", "utf8", "UTF-8"})


def check_request(parameters: MutableMapping[str, Any]) -> None:
    """Take the request's own content type out of its parameters."""
    found = parameters.pop("content_type")
    if found not in REQUEST:
        raise _refusal("of the request", found, REQUEST, "content_type")


def check_text_type(name: str, parameters: Mapping[str, object]) -> None:
    _check(name, parameters, TEXT, _UTF8)


def check_number_type(name: str, parameters: Mapping[str, object]) -> None:
    _check(name, parameters, NUMBERS, frozenset())


def is_base64_file(name: str, parameters: Mapping[str, object], *, is_text: bool) -> bool:
    """True if the elements of a file input are base64: those in JSON always, raw ones where they
    say so."""
    kind = parameters.get("content_type")
    if not (isinstance(kind, str) and kind.startswith("image/")):
        _check(name, parameters, FILE | {"str"} if is_text else FILE, frozenset({BASE64}))
    return is_text or BASE64 in (kind, parameters.get("encoding"))


def wants_raw(name: str, parameters: Mapping[str, object]) -> bool | None:
    """True for an output that is asked for raw, False for base64; None if neither is said."""
    kind, raw = parameters.get("content_type"), parameters.get("binary_data")
    if kind not in (None, BASE64):
        raise _refusal(f"of output {name[:MAX_SHOWN]!r}", kind, {BASE64}, name[:MAX_SHOWN])
    if raw is not None and not isinstance(raw, bool):
        raise InvalidRequest("binary_data must be true or false", param="binary_data")
    if kind == BASE64 and raw:
        message = f"output {name[:MAX_SHOWN]!r} is asked for as base64 and with binary_data"
        raise InvalidRequest(f"{message}; it can't be both", param=name[:MAX_SHOWN])
    return False if kind == BASE64 else raw


def _check(
    name: str,
    parameters: Mapping[str, object],
    kinds: frozenset[str],
    encodings: frozenset[str],
) -> None:
    for key, known in (("content_type", kinds), ("encoding", encodings)):
        found = parameters.get(key)
        if found is not None and found not in known:
            raise _refusal(f"of input {name[:MAX_SHOWN]!r}", found, known, name[:MAX_SHOWN], key)


def _refusal(
    what: str,
    found: object,
    known: frozenset[str] | set[str],
    param: str,
    key: str = "content_type",
) -> InvalidRequest:
    offered = f"known are {', '.join(sorted(known))}" if known else "leave it out"
    shown = ascii(str(found)[:MAX_SHOWN])
    return InvalidRequest(f"{key} {what} can't be {shown}; {offered}", param=param)
