"""Compressed request bodies: `Content-Encoding: gzip`, `deflate` and stacks of them, inflated in
small bounded pieces.

`deflate` is zlib's format (RFC 9110, 8.4.1.2) or, as some clients send it, bare DEFLATE data. A
gzip body may have several members. All of it must be there, and nothing may follow.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator

from predictors.errors import InvalidRequest, TooLarge, UnsupportedMedia
from predictors.workers.messages import SharedMemory

ACCEPTED = "gzip, deflate"
MAX_CODINGS = 4  # stacked
MAX_MEMBERS = 4096  # of one gzip body: bgzip's blocks of 64 KiB give 1024 in 64 MiB
CHUNK_BYTES = 16 * 1024  # of input per piece
PIECE_BYTES = 64 * 1024  # of output per piece: about a quarter of a millisecond
PIECES = 32  # per call of `advance` in a thread
INLINE_BYTES = CHUNK_BYTES  # a smaller body is inflated on the event loop, if few pieces suffice
INLINE_PIECES = 4

_WINDOWS = {"gzip": 16 + zlib.MAX_WBITS, "zlib": zlib.MAX_WBITS, "raw": -zlib.MAX_WBITS}


def codings_of(header: str) -> tuple[str, ...]:
    """The codings in a `Content-Encoding` header, in the order in which they were applied.

    Raises `UnsupportedMedia` for one that is not offered.
    """
    if not header:
        return ()
    found = []
    for part in header.split(",", MAX_CODINGS + 1):
        coding = part.strip(" \t").lower().removeprefix("x-")  # RFC 9110, 8.4.1.3: `x-gzip` is gzip
        if coding in {"gzip", "deflate"}:
            found.append(coding)
        elif coding not in {"", "identity"}:
            message = f"content-encoding {part.strip()[:32]!r} is not accepted; use {ACCEPTED}"
            raise UnsupportedMedia(message, accept_encoding=ACCEPTED)
    if len(found) > MAX_CODINGS:
        message = f"the body is compressed more than {MAX_CODINGS} times"
        raise UnsupportedMedia(message, accept_encoding=ACCEPTED)
    return tuple(found)


class Inflation:
    """Inflates one body of at most `limit` bytes. Any thread, one at a time."""

    def __init__(self, raw: bytes | SharedMemory, codings: tuple[str, ...], limit: int) -> None:
        self._limit = limit
        self._pieces = _chunks(raw)
        for coding in reversed(codings):
            self._pieces = _inflated(self._pieces, coding)
        self._small = bytearray()
        self._large: SharedMemory | None = None
        self.size = 0
        """Bytes inflated so far."""
        self.is_done = False

    def advance(self, pieces: int = PIECES) -> None:
        """Inflate a bounded part. Raises `TooLarge` above the limit, and `InvalidRequest`."""
        for _ in range(pieces):
            piece = next(self._pieces, None)
            if piece is None:
                self.is_done = True
                return
            self.size += len(piece)
            if self.size > self._limit:
                raise TooLarge(f"the inflated body is larger than the limit of {self._limit} bytes")
            self._add(piece)

    def body(self, shared_bytes: int) -> bytes | SharedMemory:
        """The inflated body; one of more than `shared_bytes` in shared memory."""
        if self._large is not None:
            self._large.append(self._small)
            return self._large
        if len(self._small) <= shared_bytes:
            return bytes(self._small)
        large = SharedMemory.empty()
        large.append(self._small)
        return large

    def _add(self, piece: bytes) -> None:
        self._small += piece
        if len(self._small) > 2**20:
            if self._large is None:
                self._large = SharedMemory.empty()
            self._large.append(self._small)
            self._small.clear()


def _chunks(raw: bytes | SharedMemory) -> Iterator[bytes]:
    if isinstance(raw, bytes):
        for begin in range(0, len(raw), CHUNK_BYTES):
            yield raw[begin : begin + CHUNK_BYTES]
        return
    for begin in range(0, raw.size, CHUNK_BYTES):
        yield raw.read(begin, min(CHUNK_BYTES, raw.size - begin))


def _inflated(chunks: Iterator[bytes], coding: str) -> Iterator[bytes]:
    """The inflated pieces, some of them empty: each is the work of one call of zlib."""
    decoder = None
    members = 0
    data = b""
    for chunk in chunks:
        data += chunk
        has_more = bool(data)
        while has_more:
            if decoder is None:
                if coding == "deflate" and len(data) < 2 and not members:
                    break  # two bytes tell the format
                members += 1
                decoder = _decoder(coding, members, data)
            try:
                piece = decoder.decompress(data, PIECE_BYTES)
            except zlib.error as error:
                raise InvalidRequest(f"the body is not valid {coding} data") from error
            # a full piece may have left bytes inside the decoder
            data = decoder.unconsumed_tail
            has_more = bool(data) or len(piece) == PIECE_BYTES
            if decoder.eof:
                data = decoder.unused_data
                has_more = bool(data)
                decoder = None
            yield piece
        if not chunk:
            yield b""
    if decoder is not None or not members:
        raise InvalidRequest(f"the body's {coding} data end too early")


def _decoder(coding: str, members: int, data: bytes) -> zlib._Decompress:
    if coding == "gzip":
        if members > MAX_MEMBERS:
            raise InvalidRequest(f"the body has more than {MAX_MEMBERS} gzip members")
        return zlib.decompressobj(_WINDOWS["gzip"])
    if members > 1:
        raise InvalidRequest("the body goes on behind the end of its deflate data")
    # RFC 1950: method 8, and a check of both bytes. As bare data these bits would be the padding
    # of a stored block, which is zero.
    is_zlib = data[0] & 0x0F == 8 and (data[0] << 8 | data[1]) % 31 == 0
    return zlib.decompressobj(_WINDOWS["zlib" if is_zlib else "raw"])
