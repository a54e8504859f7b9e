"""Strict HTTP/1 parsing: request heads, and bodies by Content-Length or the chunked coding (RFC
9112, section 7.1).

If two servers disagree where a message ends, a request can be smuggled in a body. Everything that
RFC 9112 leaves to the recipient's tolerance is therefore refused. Every check takes time linear in
the input, and the work of one call is bounded: a body in one-byte chunks must not block the event
loop.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from predictors.errors import InvalidRequest

MAX_HEAD_BYTES = 64 * 1024
MAX_HEADERS = 256
MAX_EMPTY_LINES = 4  # before a request line; RFC 9112, 2.2 asks for tolerance of one
MAX_LENGTH_DIGITS = 18
MAX_LINE_BYTES = 4096  # a chunk-size line with its extensions, or one trailer
MAX_TRAILER_BYTES = 8192
CHUNKS_PER_CALL = 2048  # about 4 ms of decoding
FREE_OVERHEAD_BYTES = 2**20  # chunk framing may take this plus the size of the decoded body

# grammar of RFC 9110 and 9112; possessive quantifiers keep every match linear
TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]++"
FIELD_VALUE = rb"[\t\x20-\x7e\x80-\xff]*+"
FIELD_LINE = TOKEN + b":" + FIELD_VALUE + rb"\r\n"

_REQUEST_LINE = re.compile(rb"(" + TOKEN + rb") ([\x21\x22\x24-\x7e]++) HTTP/1\.([01])\r\n")
_HEAD = re.compile(_REQUEST_LINE.pattern + rb"((?:" + FIELD_LINE + rb")*+)\r\n")
# control characters, CR without LF, LF without CR; the LF of a CR at the end may still come
_STRAY = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]|\r(?!\n|\Z)|(?<!\r)\n")
_NAME = rb"[0-9A-Za-z._~!$&'()*+;=\-]"
_ESCAPED = rb"(?:%[0-9A-Fa-f]{2}" + _NAME + rb"*+)"
_HOST = re.compile(
    rb"(?:" + _NAME + rb"++" + _ESCAPED + rb"*+|" + _ESCAPED + rb"++"
    rb"|\[[0-9A-Fa-f:.]+(?:%25[0-9A-Za-z._~\-]+)?\])(?::[0-9]{0,5})?"
)
_ABSOLUTE = re.compile(rb"https?://([^/?]*)(.*)", re.IGNORECASE)
_LISTS = frozenset({b"connection", b"expect"})  # may be repeated: comma-separated lists
_FRAMING = frozenset({b"host", b"content-length", b"transfer-encoding", b"connection", b"expect"})

_QUOTED = rb'"(?:[\t \x21\x23-\x5b\x5d-\x7e\x80-\xff]|\\[\t \x21-\x7e\x80-\xff])*+"'
_SIZE = (
    rb"([0-9A-Fa-f]{1,16})"
    rb"(?:;[ \t]*+" + TOKEN + rb"(?:[ \t]*+=[ \t]*+(?:" + TOKEN + rb"|" + _QUOTED + rb"))?+)*+"
    rb"\r\n"
)
_FIRST_SIZE = re.compile(_SIZE)
_NEXT_SIZE = re.compile(rb"\r\n" + _SIZE)  # with the line end of the previous chunk
_TRAILER = re.compile(FIELD_LINE)

NO_HTTP = "this is not an HTTP/1.1 request"


class BadHead(InvalidRequest):
    """A head refused with `status`. No byte after it can be interpreted."""

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


class Head(NamedTuple):
    """A parsed request line and its headers. Header names are lower-case."""

    method: str
    path: bytes  # still percent-encoded
    query: bytes
    version: str
    headers: list[tuple[bytes, bytes]]
    content_length: int  # 0 without the header
    is_chunked: bool
    keeps_alive: bool
    expects_continue: bool


def parse_head(raw: bytes) -> Head:
    """Parse a head from its request line to the empty line, both included. Raises `BadHead`."""
    match = _HEAD.fullmatch(raw)
    if match is None:
        raise BadHead(_what_is_wrong(raw))
    method, target, minor, block = match.groups()
    if method == b"CONNECT":  # its answer would have no content, whatever its length says
        raise BadHead("CONNECT is not offered: this server is no proxy", 501)
    lines = block.split(b"\r\n")
    del lines[-1]  # empty: after the last line end
    if len(lines) > MAX_HEADERS:
        raise BadHead(f"the request has more than {MAX_HEADERS} header lines", 431)
    headers, framing = _read_fields(lines)
    is_new = minor == b"1"
    host = framing.get(b"host")
    if host is None:
        if is_new:
            raise BadHead("the request has no Host header")
    elif not _HOST.fullmatch(host):
        raise BadHead("the Host header must be a host name or address with or without a port")
    if not target.startswith(b"/"):
        target = _read_long_target(target, host, headers)
    path, _, query = target.partition(b"?")
    connection = framing.get(b"connection")
    return Head(
        method.decode("ascii"),
        path,
        query,
        "1.1" if is_new else "1.0",
        headers,
        _read_length(framing.get(b"content-length")),
        b"transfer-encoding" in framing and _read_coding(framing, is_new),
        is_new and (connection is None or not _names_close(connection)),
        is_new and b"expect" in framing and _read_expectation(framing[b"expect"]),
    )


def _read_fields(
    lines: list[bytes],
) -> tuple[list[tuple[bytes, bytes]], dict[bytes, bytes]]:
    """Return all header names and values, and a dict of those that affect the message's framing."""
    headers: list[tuple[bytes, bytes]] = []
    framing: dict[bytes, bytes] = {}
    for line in lines:
        name, _, value = line.partition(b":")
        name, value = name.lower(), value.strip(b" \t")
        headers.append((name, value))
        if name not in _FRAMING:
            continue
        if name not in framing:
            framing[name] = value
        elif name in _LISTS:
            framing[name] += b"," + value
        else:
            raise BadHead(f"the request has more than one {name.decode().title()} header")
    return headers, framing


class HeadParser:
    """Parses successive heads from the start of a connection's receive buffer."""

    def __init__(self) -> None:
        self._searched = 0  # bytes already searched for the end of the head
        self._skipped = 0  # empty lines before the current head

    def next_head(self, unread: bytearray) -> Head | None:
        """Remove one head from the start of `unread` and return it; None if it is incomplete.

        Raises `BadHead`, also for an incomplete head that can no longer become valid.
        """
        if unread.startswith(b"\r\n"):
            self._skip_empty_lines(unread)
        end = unread.find(b"\r\n\r\n", max(0, self._searched - 3)) + 4
        if end > MAX_HEAD_BYTES or (end < 4 and len(unread) >= MAX_HEAD_BYTES):
            raise BadHead(f"the request's head is larger than {MAX_HEAD_BYTES} bytes", 431)
        if end < 4:
            self._check_unfinished(unread)
            self._searched = len(unread)
            return None
        raw = bytes(unread[:end])
        del unread[:end]
        self._searched = self._skipped = 0
        return parse_head(raw)

    def _skip_empty_lines(self, unread: bytearray) -> None:
        while unread.startswith(b"\r\n"):
            del unread[:2]
            self._skipped += 1
            if self._skipped > MAX_EMPTY_LINES:
                raise BadHead(f"{NO_HTTP}: it begins with empty lines")
        self._searched = 0

    def _check_unfinished(self, unread: bytearray) -> None:
        if _STRAY.search(unread, max(0, self._searched - 1)):
            raise BadHead(NO_HTTP)
        line_end = unread.find(b"\n", self._searched)
        if line_end >= 0 and unread.find(b"\n") == line_end and not _REQUEST_LINE.match(unread):
            raise BadHead(NO_HTTP)


def _what_is_wrong(raw: bytes) -> str:
    line_end = raw.find(b"\r\n") + 2
    if _STRAY.search(raw) or not _REQUEST_LINE.fullmatch(raw[:line_end]):
        return NO_HTTP
    return f"{NO_HTTP}: a header line is not a name, a colon and a value on one line"


def _read_long_target(
    target: bytes, host: bytes | None, headers: list[tuple[bytes, bytes]]
) -> bytes:
    """Path and query of a target that is not a path: an absolute URL, or `*`.

    The URL's host must equal the Host header, or is appended to `headers` if there is none
    (HTTP/1.0).
    """
    if target == b"*":
        return target
    match = _ABSOLUTE.fullmatch(target)
    if match is None:
        raise BadHead("the request's target must be a path")
    authority, rest = match.groups()
    if not _HOST.fullmatch(authority):
        raise BadHead("the request's target names no valid host")
    if host is None:
        headers.append((b"host", authority))
    elif authority.lower() != host.lower():
        raise BadHead("the request's target and its Host header name different hosts")
    return rest if rest.startswith(b"/") else b"/" + rest


def _read_length(value: bytes | None) -> int:
    if value is None:
        return 0
    if not value.isdigit() or len(value) > MAX_LENGTH_DIGITS:
        raise BadHead(f"Content-Length must be a number of at most {MAX_LENGTH_DIGITS} digits")
    return int(value)


def _read_coding(framing: dict[bytes, bytes], is_new: bool) -> bool:
    if b"content-length" in framing:
        raise BadHead("a request must not have both Content-Length and Transfer-Encoding")
    if not is_new:
        raise BadHead("an HTTP/1.0 request must not have a Transfer-Encoding")
    if framing[b"transfer-encoding"].lower() != b"chunked":
        raise BadHead("the one Transfer-Encoding that is understood is 'chunked'")
    return True


def _names_close(connection: bytes) -> bool:
    return b"close" in map(bytes.strip, connection.lower().split(b","))


def _read_expectation(value: bytes) -> bool:
    if value.lower() != b"100-continue":
        raise BadHead("the one expectation that can be met is '100-continue'", 417)
    return True


# -- bodies ---------------------------------------------------------------------------------------
class BadChunk(InvalidRequest):
    """The body violates the chunked coding, so its end is unknown."""


class SizedBody:
    """Decodes one body whose length is known. `left` counts the bytes still to come."""

    def __init__(self, left: int) -> None:
        self.left = left

    @property
    def is_complete(self) -> bool:
        return self.left == 0

    def decode(self, raw: bytearray) -> tuple[bytes, bool]:
        body = bytes(raw[: self.left])
        del raw[: self.left]
        self.left -= len(body)
        return body, False


class ChunkedBody:
    """Decodes one body in the chunked coding. Extensions and trailers are checked and dropped.

    `is_complete` is set after the empty line behind the trailers.
    """

    def __init__(self) -> None:
        self.is_complete = False
        self._next_size = _FIRST_SIZE
        self._left = 0  # bytes of the current chunk that have not arrived
        self._trailer_bytes = 0  # counted after the last chunk's size line
        self._in_trailers = False
        self._body_bytes = 0
        self._overhead_bytes = 0

    def decode(self, raw: bytearray) -> tuple[bytes, bool]:
        """Remove what can be decoded from the start of `raw`.

        Returns the decoded bytes, and True if more can be decoded by another call at once. Raises
        `BadChunk`.
        """
        parts: list[bytes] = []
        at, calls = 0, 0
        while calls < CHUNKS_PER_CALL and not self.is_complete:
            calls += 1
            if self._left:
                part = bytes(raw[at : at + self._left])
                parts.append(part)
                at += len(part)
                self._left -= len(part)
                self._body_bytes += len(part)
                if self._left:
                    break
            end = self._read_trailer(raw, at) if self._in_trailers else self._read_size(raw, at)
            if end == at:
                break
            self._overhead_bytes += end - at
            at = end
        del raw[:at]
        if self._overhead_bytes > FREE_OVERHEAD_BYTES + self._body_bytes:
            raise BadChunk("the body's chunks are so small that the coding outweighs the body")
        return b"".join(parts), calls == CHUNKS_PER_CALL and not self.is_complete

    def _read_size(self, raw: bytearray, at: int) -> int:
        """Return the end of the chunk-size line at `at`, or `at` if the line is incomplete."""
        match = self._next_size.match(raw, at)
        if match is None or match.end() - at > MAX_LINE_BYTES:
            is_first = self._next_size is _FIRST_SIZE
            if not is_first and not raw.startswith(b"\r\n"[: len(raw) - at], at):
                raise BadChunk("a chunk of the body does not end where its size says")
            _check_unfinished(raw, at if is_first else at + 2)
            return at
        self._left = int(match[1], 16)
        self._in_trailers = not self._left
        self._next_size = _NEXT_SIZE
        return match.end()

    def _read_trailer(self, raw: bytearray, at: int) -> int:
        """Return the end of the trailer or last empty line at `at`, or `at` if it is incomplete."""
        if raw.startswith(b"\r\n", at):
            self.is_complete = True
            return at + 2
        match = _TRAILER.match(raw, at)
        if match is None:
            if not raw.startswith(b"\r", at) or len(raw) > at + 1:
                _check_unfinished(raw, at)
            return at
        self._trailer_bytes += match.end() - at
        if self._trailer_bytes > MAX_TRAILER_BYTES:
            raise BadChunk(f"the body's trailers are larger than {MAX_TRAILER_BYTES} bytes")
        return match.end()


def _check_unfinished(raw: bytearray, at: int) -> None:
    """Raise `BadChunk` if the incomplete line at `at` can no longer become valid."""
    if raw.find(b"\n", at, at + MAX_LINE_BYTES) >= 0 or 0 <= raw.find(b"\r", at) < len(raw) - 1:
        raise BadChunk("a line of the body's chunked coding is malformed")
    if len(raw) - at >= MAX_LINE_BYTES:
        raise BadChunk(f"a line of the body's chunked coding exceeds {MAX_LINE_BYTES} bytes")
