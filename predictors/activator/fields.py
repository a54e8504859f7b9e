"""Header fields of HTTP and metadata of gRPC as a proxy passes them on: those of one connection
stay behind (RFC 9110, 7.6.1), and the caller's address is added.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from predictors.errors import InvalidRequest
from predictors.protocol.addresses import FORWARDED_HEADER
from predictors.protocol.call import (
    REQUEST_ID_HEADER,
    SINGLE_HEADERS,
    TIMEOUT_HEADER,
    parse_timeout,
)

Fields = list[tuple[bytes, bytes]]
Metadata = list[tuple[str, str | bytes]]

HOP_BY_HOP = frozenset(
    {
        b"connection", b"keep-alive", b"proxy-connection", b"proxy-authenticate",
        b"proxy-authorization", b"te", b"trailer", b"transfer-encoding", b"upgrade",
    }
)  # fmt: skip
END_TO_END = frozenset(
    {
        b"host", b"content-length", b"content-type", b"content-encoding", b"origin",
        *(name.encode() for name in SINGLE_HEADERS),
    }
)  # fmt: skip
"""Fields that no Connection header removes: without them the model's server would read another
request than the caller and the proxies before have sent."""
_REQUEST_ID = REQUEST_ID_HEADER.encode()
_FORWARDED = FORWARDED_HEADER.encode()
_TIMEOUT = TIMEOUT_HEADER.encode()
_SENT = re.compile(r"[\x20-\x7e]*+")
"""Values of gRPC's metadata, but for those of keys that end with `-bin`."""
OWN_REQUEST_FIELDS = frozenset({b"expect", _REQUEST_ID, _FORWARDED})
"""Of a request: answered or written by the proxy."""
OWN_RESPONSE_FIELDS = frozenset({b"date", _REQUEST_ID})
"""Of a response: `HttpServer` and `RestApp` write theirs."""
OWN_METADATA = frozenset({"user-agent", REQUEST_ID_HEADER, FORWARDED_HEADER})


def request_fields(
    headers: Sequence[tuple[bytes, bytes]],
    request_id: str,
    peer: str,
    host: bytes,
    waited_s: float = 0.0,
) -> Fields:
    """The fields for the model's server, framing included. `host` is for a request without one. The
    time that it `waited_s` is taken off the caller's timeout."""
    names = {name for name, _ in headers}
    passed = [
        (name, _time_left(value.decode("latin-1"), waited_s).encode("latin-1"))
        if name == _TIMEOUT
        else (name, value)
        for name, value in _end_to_end(headers, OWN_REQUEST_FIELDS)
    ]
    if b"host" not in names:
        passed.insert(0, (b"host", host))
    before = [value for name, value in headers if name == _FORWARDED]
    passed.append((_FORWARDED, b", ".join([*before, *([peer.encode()] if peer else [])])))
    passed.append((_REQUEST_ID, request_id.encode()))
    if b"transfer-encoding" in names:
        passed.append((b"transfer-encoding", b"chunked"))
    passed.append((b"connection", b"close"))
    return passed


def response_fields(headers: Iterable[tuple[bytes, bytes]]) -> Fields:
    """The fields for the caller, with lower-case names. Chunked content has no length."""
    lower = [(name.lower(), value) for name, value in headers]
    is_chunked = any(name == b"transfer-encoding" for name, _ in lower)
    own = OWN_RESPONSE_FIELDS | ({b"content-length"} if is_chunked else set())
    return _end_to_end(lower, own)


def request_metadata(
    pairs: Iterable[tuple[str, str | bytes]], request_id: str, peer: str, waited_s: float = 0.0
) -> Metadata:
    """The metadata for the model's server, as `request_fields`. gRPC writes its own, which begin
    with `grpc-`. Raises `InvalidRequest` for a value that gRPC takes from a caller and never
    sends."""
    given = list(pairs)
    passed: Metadata = [
        (name, _time_left(str(value), waited_s) if name == TIMEOUT_HEADER else value)
        for name, value in passed_metadata(given, OWN_METADATA)
    ]
    before = [str(value) for name, value in given if name == FORWARDED_HEADER]
    passed.append((FORWARDED_HEADER, ", ".join([*before, *([peer] if peer else [])])))
    passed.append((REQUEST_ID_HEADER, request_id))
    for name, value in passed:
        if isinstance(value, str) and not _SENT.fullmatch(value):
            raise InvalidRequest(
                f"the metadata {name!r} has characters outside of printable ASCII, which gRPC "
                "carries in keys that end with -bin only"
            )
    return passed


def passed_metadata(
    pairs: Iterable[tuple[str, str | bytes]], own: frozenset[str] = frozenset()
) -> Metadata:
    """Metadata without the keys of `own` and those that gRPC keeps for itself, but for the rich
    status, which is the caller's."""
    return [
        (name, value)
        for name, value in pairs
        if name not in own
        and not name.startswith(":")
        and (not name.startswith("grpc-") or name == "grpc-status-details-bin")
    ]


def _time_left(timeout_ms: str, waited_s: float) -> str:
    """The caller's timeout without whole milliseconds that have passed, at least one millisecond. A
    wrong one stays: the model's server refuses it."""
    waited_ms = int(waited_s * 1e3)
    try:
        given_s = parse_timeout(timeout_ms, TIMEOUT_HEADER, unit_s=1e-3)
    except InvalidRequest:
        return timeout_ms
    return f"{max(1.0, given_s * 1e3 - waited_ms):.0f}" if waited_ms else timeout_ms


def _end_to_end(headers: Iterable[tuple[bytes, bytes]], own: frozenset[bytes]) -> Fields:
    pairs = list(headers)
    named = {
        word.strip().lower()
        for name, value in pairs
        if name == b"connection"
        for word in value.split(b",")
    }
    left_out = (named - END_TO_END) | HOP_BY_HOP | own
    return [(name, value) for name, value in pairs if name not in left_out]
