"""Where the body of a request ends: by its Content-Length, or by the chunked coding (RFC 9112,
section 7.1), decoded by strict rules.

Chunk extensions and trailers are checked and dropped. What the coding itself takes is bounded, and
so is the work of one call: a body in one-byte chunks must not hold the event loop.
"""

from __future__ import annotations

import re

from predictors.errors import InvalidRequest
from predictors.protocol.http.heads import FIELD_LINE, TOKEN

MAX_LINE_BYTES = 4096  # a chunk's size with its extensions, or one trailer
MAX_TRAILER_BYTES = 8192
CHUNKS_PER_CALL = 2048  # some 4 ms
FREE_OVERHEAD_BYTES = 2**20  # the coding may take this, and as much again as the body itself

_QUOTED = rb'"(?:[\t \x21\x23-\x5b\x5d-\x7e\x80-\xff]|\\[\t \x21-\x7e\x80-\xff])*+"'
_SIZE = (
    rb"([0-9A-Fa-f]{1,16})"
    rb"(?:;[ \t]*+" + TOKEN + rb"(?:[ \t]*+=[ \t]*+(?:" + TOKEN + rb"|" + _QUOTED + rb"))?+)*+"
    rb"\r\n"
)
_FIRST_SIZE = re.compile(_SIZE)
_NEXT_SIZE = re.compile(rb"\r\n" + _SIZE)  # with the end of the chunk before it
_TRAILER = re.compile(FIELD_LINE)


class BadChunk(InvalidRequest):
    """The body breaks the coding: where it ends is not known."""


class SizedBody:
    """One body on its way, of so many bytes."""

    def __init__(self, left: int) -> None:
        self.left = left

    @property
    def is_complete(self) -> bool:
        """Whether all of it was taken."""
        return self.left == 0

    def take(self, raw: bytearray) -> tuple[bytes, bool]:
        """Like `ChunkedBody.take`."""
        body = bytes(raw[: self.left])
        del raw[: self.left]
        self.left -= len(body)
        return body, False


class ChunkedBody:
    """One body on its way. `is_complete` once the last trailer was read."""

    def __init__(self) -> None:
        self.is_complete = False
        self._next_size = _FIRST_SIZE
        self._left = 0  # bytes of the present chunk that are still to come
        self._trailer_bytes = 0  # counted once the last chunk's size was read
        self._in_trailers = False
        self._body_bytes = 0
        self._overhead_bytes = 0

    def take(self, raw: bytearray) -> tuple[bytes, bool]:
        """Remove from the front of `raw` what can be decoded. Returns the body's bytes in it, and
        whether there is more to decode that must wait for another call.

        Raises `BadChunk`.
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
        """Where the line with the next chunk's size ends, `at` if that is not here yet."""
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
        """Where the next trailer or the empty line behind them ends; `at` if it is not here."""
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
    """Raise `BadChunk` unless the line that begins at `at` may still become a good one."""
    if raw.find(b"\n", at, at + MAX_LINE_BYTES) >= 0 or 0 <= raw.find(b"\r", at) < len(raw) - 1:
        raise BadChunk("a line of the body's chunked coding is malformed")
    if len(raw) - at >= MAX_LINE_BYTES:
        raise BadChunk(f"a line of the body's chunked coding exceeds {MAX_LINE_BYTES} bytes")
